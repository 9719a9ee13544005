"""Checkpoints of bitsandbytes' formats that load as they were saved.

On CPUs with AVX512-BF16 bitsandbytes packs 4-bit weights when it first evaluates with them, and
what is saved of packed weights is garbage; `load_policy` keeps them from it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from trl import ModelConfig

from recipes.lib.errors import UserError
from recipes.lib.models.policies import load_policy
from recipes.lib.publishing.readback import say

BITS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}


def save_quantized(source: ModelConfig, kind: str, tokenizer: Any, folder: Path) -> Any:
    """Save a run's model in 4 or 8 bits, an adapter merged before it is rounded.

    Args:
        source: TRL's model keys of the run; dtype is that of what is not rounded.
        kind: One of BITS.
        tokenizer: Its tokenizer.
        folder: Where it goes.

    Returns:
        The model as it is loaded from there; its logits are those of the one that was saved.

    Raises:
        UserError: The run cannot be loaded, or what was saved says something else.
    """
    model = load_policy(replace(source, **BITS[kind]))
    before = say(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again = load_policy(ModelConfig(model_name_or_path=str(folder), dtype="auto"))
    if not all(map(torch.equal, before, say(again, tokenizer))):
        raise UserError(
            f"run={source.model_name_or_path}: saved in {kind} and loaded again, it says something "
            "else; choose to=gguf."
        )
    return again
