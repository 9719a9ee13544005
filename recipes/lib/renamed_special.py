"""Earlier keys whose value changes with the name; renamed_keys.py applies them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Values = dict[str, Any]

REWARD_MODELS = ("reward_model_path", "reward_model_name_or_path", "reward_model")


def _flash_attention(values: Values) -> Values:
    return {"attn_implementation": "flash_attention_2"} if values["use_flash_attention_2"] else {}


def _by_length(values: Values) -> Values:
    return {"train_sampling_strategy": "group_by_length"} if values["group_by_length"] else {}


def _adafactor(values: Values) -> Values:
    return {"optim": "adafactor"} if values["adafactor"] else {}


def _reentrant(values: Values) -> Values:
    chosen = values["gradient_checkpointing_use_reentrant"]
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": chosen}}
    return {} if chosen is None else kwargs


def _truncation(values: Values) -> Values:
    return {"truncation_mode": "keep_end"} if values["truncation_side"] == "left" else {}


def _text_field(values: Values) -> Values:
    named = values["text_column"]
    return {"dataset_text_field": named} if named not in (None, "text") else {}


def _log_completions(values: Values) -> Values:
    return {"log_completions": bool(values["num_sample_generations"])}


def _reward_funcs(values: Values) -> Values:
    given = values.get("reward_funcs") or []
    paths = [values.get(key) for key in REWARD_MODELS]
    return {"reward_funcs": [*([given] if isinstance(given, str) else given), *filter(None, paths)]}


# Keys whose value changes with the name.
SPECIAL: dict[str, Callable[[Values], Values | None]] = {
    "use_flash_attention_2": _flash_attention,
    "group_by_length": _by_length,
    "adafactor": _adafactor,
    "truncation_side": _truncation,
    "text_column": _text_field,
    "num_sample_generations": _log_completions,
    "gradient_checkpointing_use_reentrant": _reentrant,
    **dict.fromkeys(REWARD_MODELS, _reward_funcs),
}
# Those that go together with the new key. TRL's PPO took the tokenizer from model_name_or_path and
# the policy from sft_model_path; transformers took a warmup_ratio where warmup_steps was 0.
MERGED = ("sft_model_path", *REWARD_MODELS, "warmup_ratio")
