"""Loads what was pushed as others do, the local folder beside it, and says where they differ.

Started by its path in a process of its own, in which nothing of this project can be imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

NUM_TOKENS, NEW_TOKENS = 8, 24
MAX_GAP = 1e-3  # of a logit in float32: sums may be in another order, weights may not


def compare(asked: dict[str, Any]) -> list[str]:
    """Compare a commit with a folder.

    Args:
        asked: repo, commit, folder, hashes of the files by name, trust_remote_code.

    Returns:
        What differs, in words.
    """
    from huggingface_hub import hf_hub_download

    wrong = []
    for name, digest in asked["files"].items():
        file = hf_hub_download(asked["repo"], name, revision=asked["commit"])
        with Path(file).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != digest:
                wrong.append(f"{name} is another file")
    logits, texts = answers(asked, asked["repo"], revision=asked["commit"])
    ours, own = answers(asked, asked["folder"])
    gap = float((logits - ours).abs().max()) if logits.shape == ours.shape else float("inf")
    if not gap <= MAX_GAP:
        wrong.append(f"logits are off by {gap:.2g}")
    if texts != own:
        wrong.append("tokens, template or greedy text are others")
    return wrong


def answers(asked: dict[str, Any], name: str, **place: str) -> tuple[Any, list[Any]]:
    """What a model and what is beside it make of fixed input: logits in float32, and texts."""
    import peft
    import torch
    import transformers

    adapter = Path(asked["folder"]) / "adapter_config.json"
    library, kind, config = transformers, "AutoModelFor", adapter.with_name("config.json")
    options: dict[str, Any] = {"trust_remote_code": asked["trust_remote_code"], **place}
    if not adapter.is_file() and "ForImageClassification" in config.read_text(encoding="utf-8"):
        return picture_answers(name, options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
    if adapter.is_file():
        library, kind, config = peft, "AutoPeftModelFor", adapter
    text = config.read_text(encoding="utf-8")
    is_reward = '"SEQ_CLS"' in text or "ForSequenceClassification" in text
    if is_reward and adapter.is_file():  # whose base may be a language model
        heads = adapter.with_name("reward_heads.json")
        known = json.loads(heads.read_text(encoding="utf-8")) if heads.is_file() else {}
        options["num_labels"] = len(known.get("aspects", [""])) * known.get("ensemble", 1)
    kind += "SequenceClassification" if is_reward else "CausalLM"
    if adapter.with_name("processor_config.json").is_file():  # of a model that reads pictures
        library, kind = transformers, "AutoModelForImageTextToText"
    model = getattr(library, kind).from_pretrained(name, dtype=torch.float32, **options)
    ids = torch.arange(1, NUM_TOKENS + 1)[None] % model.config.get_text_config().vocab_size
    texts = [tokenizer("What is it?")["input_ids"], tokenizer.chat_template]
    with torch.inference_mode():
        ids = ids.to(model.device)
        logits = model.eval()(input_ids=ids).logits.float().cpu()
        if not is_reward:
            said = model.generate(input_ids=ids, do_sample=False, max_new_tokens=NEW_TOKENS)
            texts.append(tokenizer.decode(said[0]))
    return logits, texts


def picture_answers(name: str, options: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The same of a classifier of pictures."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32, **options)
    seen = AutoImageProcessor.from_pretrained(name, backend="pil", **options)(
        Image.radial_gradient("L").convert("RGB"), return_tensors="pt"
    )
    with torch.inference_mode():
        return model.eval()(**seen).logits, [model.config.id2label]


if __name__ == "__main__":
    sys.modules["recipes"] = None  # type: ignore[assignment]
    print(json.dumps(compare(json.loads(sys.argv[1]))))
