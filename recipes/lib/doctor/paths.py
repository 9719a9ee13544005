"""The same score everywhere: alone, padded, beside others, loaded by others, in fewer bits.

Differences are the largest of all texts, in standard deviations of the model's scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.lib.doctor.findings import (
    Array,
    Finding,
    NotCheckedError,
    finding,
    largest,
    limit_of,
    rank_correlation,
)
from recipes.lib.doctor.subject import Subject
from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import BASE_QUANTIZATION
from recipes.lib.models.folders import is_adapter

NUM_TEXTS = 32
PADDING = 5  # tokens
MOST_BYTES = 2**31  # of a model that is loaded a second time


@torch.no_grad()
def padded(model: Any, rows: Sequence[list[int]], pad: int, left: int = 0, right: int = 0) -> Array:
    """Scores of rows, each by itself, between so many tokens of padding, which the mask tells."""
    device, scores = next(model.parameters()).device, []
    for row in rows:
        ids = torch.tensor([[pad] * left + row + [pad] * right], device=device)
        mask = torch.tensor([[0] * left + [1] * len(row) + [0] * right], device=device)
        scores.append(float(model(input_ids=ids, attention_mask=mask).logits.float().squeeze()))
    return np.array(scores)


def _alone(subject: Subject, spare: int = PADDING) -> tuple[list[list[int]], Array]:
    """Rows with room for so much padding in the context, and their scores."""
    room = (subject.context or 2**30) - spare
    ids = [row[-room:] for row in subject.token_ids(*subject.rows(NUM_TEXTS))]
    return ids, padded(subject.scorer.model, ids, subject.pad)


def _gap(subject: Subject, one: Array, other: Array) -> float:
    return float(np.abs(one - other).max()) / subject.spread


def last_column(subject: Subject) -> Finding:
    """A score hangs on the last token, and not on the last column or on longer neighbours."""
    (ids, alone), model = _alone(subject), subject.scorer.model
    beside = subject.scorer.outputs(_with_longer(subject, ids)).sum(-1)[:-1].numpy()
    found = {"beside a long neighbour": _gap(subject, beside, alone)}
    found["padded right"] = _gap(subject, padded(model, ids, subject.pad, right=PADDING), alone)
    return _padding(subject, "last_column", "right", found)


def _with_longer(subject: Subject, ids: list[list[int]]) -> list[list[int]]:
    """Rows, and one of twice their length, so that all others are padded."""
    return [*ids, (max(ids, key=len) * 2)[: subject.context]]


def left_padding(subject: Subject) -> Finding:
    """Padding on the left, which the mask tells, changes nothing."""
    ids, alone = _alone(subject)
    shifted = padded(subject.scorer.model, ids, subject.pad, left=PADDING)
    return _padding(subject, "left_padding", "left", {"padded": _gap(subject, shifted, alone)})


def _padding(subject: Subject, name: str, side: str, found: dict[str, float]) -> Finding:
    ids, alone = _alone(subject)
    with suppress(NotCheckedError):  # which the check of the pipeline tells
        found["by transformers alone"] = _gap(subject, _by_transformers(subject, ids, side), alone)
    worst, off = largest(found)
    # PPO pads on the right; what nobody pads on the left is not stopped for it.
    is_used = side in ("right", subject.scorer.tokenizer.padding_side)
    is_off = off > limit_of(name)
    return finding(name, off, is_off and is_used, is_off, worst=worst, found=found)


def _is_rounded(subject: Subject) -> bool:
    return (Path(subject.path) / BASE_QUANTIZATION).is_file()


@torch.no_grad()
def _by_transformers(subject: Subject, ids: list[list[int]], side: str) -> Array:
    """Scores of a fresh load by transformers or PEFT, of one padded batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    subject.refuse_large(MOST_BYTES)
    own: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": subject.trusted}
    if is_adapter(subject.path):
        from peft import AutoPeftModelForSequenceClassification as Loader

        if _is_rounded(subject):
            raise NotCheckedError("its base was rounded in training, which PEFT alone leaves out")
        model = Loader.from_pretrained(subject.path, num_labels=1, **own)
        tokenizer = subject.scorer.tokenizer  # an adapter may have its base's
        model.config.pad_token_id = tokenizer.pad_token_id  # a base knows of none
    else:
        own |= {"use_safetensors": True}  # other formats can run code
        model = AutoModelForSequenceClassification.from_pretrained(subject.path, **own)
        tokenizer = AutoTokenizer.from_pretrained(subject.path, trust_remote_code=subject.trusted)
    if model.config.get_text_config().pad_token_id is None or tokenizer.pad_token is None:
        raise NotCheckedError("its files name no padding, so that others score one text at a time")
    model = model.eval().to(next(subject.scorer.model.parameters()).device)
    rows = {"input_ids": _with_longer(subject, ids)}
    given = tokenizer.pad(rows, padding_side=side, return_tensors="pt")
    given = {key: given[key].to(model.device) for key in ("input_ids", "attention_mask")}
    return np.array(model(**given).logits.float().reshape(-1).tolist()[:-1])


def pipeline(subject: Subject) -> Finding:
    """Transformers' own pipeline, or PEFT's loading of an adapter, says the same."""
    from transformers import pipeline as make

    subject.refuse_large(MOST_BYTES)
    prompts, completions = subject.rows(NUM_TEXTS)
    ids, alone = _alone(subject, 0)
    if is_adapter(subject.path):
        said = _by_transformers(subject, ids, "right")
    else:
        own: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": subject.trusted}
        more = {"function_to_apply": "none", "add_special_tokens": isinstance(prompts[0], str)}
        try:
            files = {"model_kwargs": {"use_safetensors": True}}
            asked = make("text-classification", subject.path, device="cpu", **files, **own)
            rows = asked(subject.scorer.texts(prompts, completions), **more)
        except Exception as error:  # whatever a library says of a model that is not its own
            raise NotCheckedError(f"transformers' pipeline refuses it ({error})") from error
        said = np.array([row["score"] for row in rows])
    off = _gap(subject, said, alone)
    return finding("pipeline", off, off > limit_of("pipeline"))


def merged(subject: Subject) -> Finding:
    """An adapter says the same merged, and on the policy's base."""
    if not is_adapter(subject.path):
        raise NotCheckedError("it is a whole model, with nothing to merge")
    subject.refuse_large(MOST_BYTES)
    from peft import LoraConfig, get_peft_model
    from trl import ModelConfig

    from recipes.lib.models.adapter_folders import base_args
    from recipes.lib.models.adapters import Adapters
    from recipes.lib.models.classifiers import load_reward_model
    from recipes.lib.models.policies import load_policy, placed
    from recipes.lib.rewards.reward_models import RewardModel
    from recipes.lib.rewards.shared_base import SharedBase

    rows = subject.rows(NUM_TEXTS)
    own: dict[str, Any] = {"trust_remote_code": subject.trusted}
    whole, tokenizer = load_reward_model(subject.path, new_head=True, **own)
    ways: dict[str, Any] = {"merged": (placed(whole), tokenizer)}
    if not _is_rounded(subject):  # what the policy's base is then, its run says
        with suppress(UserError):  # a base of another kind, from which PPO loads it apart
            policy = load_policy(base_args(subject.path, ModelConfig(dtype="float32")), **own)
            on_it: Any = get_peft_model(placed(policy), LoraConfig(task_type="CAUSAL_LM", r=1))
            shared = SharedBase(Adapters(on_it), tokenizer)
            ways["on the policy's base"] = shared.reward(subject.path, **own)
            on_it.eval()  # a role does not hold the base, and the adapter brings dropout
    apart, found = subject.ask(*rows), {}
    for way, (model, its_tokenizer) in ways.items():
        said = np.array(RewardModel(model, its_tokenizer, way)(*rows))
        found[way] = _gap(subject, said, apart)
    worst, off = largest(found)
    return finding("merged_and_shared", off, off > limit_of("merged_and_shared"), worst=worst)


def fewer_bits(subject: Subject) -> Finding:
    """What bfloat16 and 4 bits do to the scores; no fault, since nobody has to use them."""
    subject.refuse_large(MOST_BYTES)
    ids, alone = _alone(subject)
    models = {"bfloat16": copy.deepcopy(subject.scorer.model).bfloat16()}
    with suppress(ImportError):  # bitsandbytes is an extra
        models["four"] = _in_four_bits(copy.deepcopy(subject.scorer.model))
    found = {}
    for name, model in models.items():
        scores = padded(model, ids, subject.pad)
        found[name] = float(np.sqrt(np.mean((scores - alone) ** 2))) / subject.spread
        found[f"{name}_rank_correlation"] = rank_correlation(scores, alone)
    off = found["bfloat16"]
    return finding("fewer_bits", off, False, off > limit_of("fewer_bits"), **found)


def _in_four_bits(model: Any) -> Any:
    """Linear layers below the head rounded to NF4 and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and "score" not in name and "lora_" not in name:
            weight = layer.weight.data
            rounded = quantize_4bit(weight.contiguous(), quant_type="nf4")
            layer.weight.data = dequantize_4bit(*rounded).to(weight.dtype)
    return model
