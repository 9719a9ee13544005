"""The same score everywhere: alone, padded, beside others, loaded by others, in fewer bits.

Differences are the largest of all texts, in standard deviations of the model's scores.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from recipes.lib.doctor.findings import Finding, NotCheckedError, finding, limit_of
from recipes.lib.doctor.statistics import Array, largest, rank_correlation
from recipes.lib.doctor.subject import NUM_TEXTS, PADDING, Subject
from recipes.lib.errors import UserError
from recipes.lib.models.folders import is_adapter

NUM_SINGLE = 8  # texts that the pipeline is asked about, one at a time


def _gap(subject: Subject, scores: Array) -> float:
    return float(np.abs(scores - subject.alone).max()) / subject.spread


def last_column(subject: Subject) -> Finding:
    """A score hangs on the last token, and not on the last column or on longer neighbours."""
    beside = subject.scorer.outputs(_with_longer(subject)).sum(-1)[:-1].numpy()
    ways = {"beside a long neighbour": beside, "padded right": subject.padded(right=PADDING)}
    return _padding(subject, "last_column", "right", ways)


def _with_longer(subject: Subject) -> list[list[int]]:
    """Rows, and one of twice their length, so that all others are padded."""
    return [*subject.ids, (max(subject.ids, key=len) * 2)[: subject.context]]


def left_padding(subject: Subject) -> Finding:
    """Padding on the left, which the mask tells, changes nothing."""
    return _padding(subject, "left_padding", "left", {"padded": subject.padded(left=PADDING)})


def _padding(subject: Subject, name: str, side: str, ways: dict[str, Array]) -> Finding:
    with suppress(NotCheckedError):  # which the check of the pipeline tells
        ways["by transformers alone"] = _by_others(subject, side)
    found = {way: _gap(subject, scores) for way, scores in ways.items()}
    worst, off = largest(found)
    # PPO pads on the right; what nobody pads on the left is not stopped for it.
    is_used = side in ("right", subject.scorer.tokenizer.padding_side)
    is_off = off > limit_of(name)
    return finding(name, off, is_off and is_used, is_off, worst=worst, found=found)


@torch.no_grad()
def _by_others(subject: Subject, side: str) -> Array:
    """Scores of a load by transformers or PEFT alone, of one padded batch."""
    model, tokenizer = subject.by_others
    if model.config.get_text_config().pad_token_id is None or tokenizer.pad_token is None:
        raise NotCheckedError("its files name no padding, so that others score one text at a time")
    rows = {"input_ids": _with_longer(subject)}
    given = tokenizer.pad(rows, padding_side=side, return_tensors="pt")
    given = {key: given[key].to(model.device) for key in ("input_ids", "attention_mask")}
    return np.array(model(**given).logits.float().sum(-1).tolist()[:-1])


def pipeline(subject: Subject) -> Finding:
    """Transformers' own pipeline, or PEFT's loading of an adapter, says the same."""
    from transformers import pipeline as make

    model, tokenizer = subject.by_others
    if is_adapter(subject.path) or model.config.num_labels > 1:  # of which it tells one
        off = _gap(subject, _by_others(subject, "right"))
    else:
        prompts, completions = subject.rows(NUM_SINGLE)
        more = {"function_to_apply": "none", "add_special_tokens": isinstance(prompts[0], str)}
        try:
            asked = make("text-classification", model=model, tokenizer=tokenizer)
            rows = asked(subject.scorer.texts(prompts, completions), **more)
        except Exception as error:  # whatever a library says of a model that is not its own
            raise NotCheckedError(f"transformers' pipeline refuses it ({error})") from error
        apart = [row["score"] for row in rows] - subject.ask(prompts, completions)
        off = float(np.abs(apart).max()) / subject.spread
    return finding("pipeline", off, off > limit_of("pipeline"))


def merged_and_shared(subject: Subject) -> Finding:
    """An adapter says the same merged, and on the policy's base."""
    if not is_adapter(subject.path):
        raise NotCheckedError("it is a whole model, with nothing to merge")
    subject.refuse_large()
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
    if not subject.is_rounded:  # what the policy's base is then, its run says
        with suppress(UserError):  # a base of another kind, from which PPO loads it apart
            policy = load_policy(base_args(subject.path, ModelConfig(dtype="float32")), **own)
            on_it: Any = get_peft_model(placed(policy), LoraConfig(task_type="CAUSAL_LM", r=1))
            shared = SharedBase(Adapters(on_it), tokenizer)
            ways["on the policy's base"] = shared.reward(subject.path, **own)
            on_it.eval()  # a role does not hold the base, and the adapter brings dropout
    apart, found = subject.ask(*rows), {}
    for way, (model, its_tokenizer) in ways.items():
        said = np.array(RewardModel(model, its_tokenizer, way)(*rows))
        found[way] = float(np.abs(said - apart).max()) / subject.spread
    worst, off = largest(found)
    return finding("merged_and_shared", off, off > limit_of("merged_and_shared"), worst=worst)


def fewer_bits(subject: Subject) -> Finding:
    """What bfloat16 and 4 bits do to the scores; no fault, since nobody has to use them."""
    subject.refuse_large()
    models = {"bfloat16": copy.deepcopy(subject.scorer.model).bfloat16()}
    with suppress(ImportError):  # bitsandbytes is an extra
        models["four"] = _in_four_bits(copy.deepcopy(subject.scorer.model))
    found = {}
    for name, model in models.items():
        scores = subject.padded(model=model)
        found[name] = float(np.sqrt(np.mean((scores - subject.alone) ** 2))) / subject.spread
        found[f"{name}_rank_correlation"] = rank_correlation(scores, subject.alone)
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
