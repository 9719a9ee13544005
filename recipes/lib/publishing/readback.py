"""What an exported model says beside the trained one, on texts in many scripts.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STRIDE = 12  # every so many texts: one or two of each script
MOST_TOKENS = 32  # of a text


def sample_texts() -> list[str]:
    """Two hundred texts: eleven languages, emoji, code, numbers, runs of white space; all NFC."""
    texts: list[str] = json.loads(Path(__file__).with_name("texts.json").read_text("utf-8"))
    return texts


@torch.no_grad()
def say(model: Any, tokenizer: Any) -> list[Tensor]:
    """Logits (T, V) of a model on some of the texts, in float32 on the CPU."""
    rows = [tokenizer(text)["input_ids"][:MOST_TOKENS] for text in sample_texts()[::STRIDE]]
    ids = [torch.tensor([row], device=model.device) for row in rows if row]
    return [model(input_ids=row, use_cache=False).logits[0].float().cpu() for row in ids]
