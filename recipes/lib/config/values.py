"""Checks values against the fields they are meant for, from YAML and from flags alike.

Also numbers that no run can use, where libraries would end in a traceback or go on with nonsense.
Ranges that depend on other keys are checked where these are read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from recipes.lib.config.fields import Field, fields_of, is_enum, members, one_of, type_words
from recipes.lib.config.strict_yaml import parse_scalar

FROM_1 = """
per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
global_batch_size total_episodes rollout_batch_size num_ppo_epochs num_mini_batches
max_prompt_length max_turns max_episode_length num_environments kl_horizon
precompute_ref_batch_size eval_accumulation_steps dataset_num_proc
torch_empty_cache_steps max_length max_completion_length max_new_tokens
lora_r num_generations num_generations_eval num_iterations steps_per_generation
generation_batch_size ref_model_sync_steps sampling_batch_size scoring_batch_size
batch_size vllm_tensor_parallel_size num_measured num_prompts max_rows max_train_rows
max_tokens concurrency tasks_limit feedback_episodes
vocab_size hidden_size intermediate_size num_layers num_heads context_tokens
""".split()
FROM_0 = """
learning_rate critic_learning_rate weight_decay adam_epsilon warmup_steps max_grad_norm
eval_delay num_samples dataloader_num_workers temperature top_k beta epsilon epsilon_high
neftune_noise_alpha desirable_weight undesirable_weight center_rewards_coefficient reward_retries
retries reasks price_in price_out
kl_coef vf_coef entropy_coef critic_warmup_rollouts
num_feedback_prompts num_ppo_prompts num_eval_prompts feedback_timeout grid_intensity
""".split()
ABOVE_0 = """
logging_steps eval_steps save_steps num_train_epochs lora_alpha repetition_penalty
cliprange cliprange_value max_approx_kl target_kl reward_clip
ddp_timeout reward_timeout rater_temperature num_texts num_sft_train timeout power_watts
""".split()
SHARES = """
label_smoothing_factor label_smoothing max_unparsable min_p top_p top_entropy_quantile gamma lam
""".split()
BELOW_1 = ["adam_beta1", "adam_beta2", "lora_dropout"]
FINITE = ["cost_limit"]
SEEDS = ["seed", "data_seed"]  # numpy takes 32 bits
# What numbers a key takes, in words and as a test.
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(FROM_1, ("1 or more", lambda value: value >= 1)),
    **dict.fromkeys(FROM_0, ("0 or more", lambda value: value >= 0)),
    **dict.fromkeys(ABOVE_0, ("above 0", lambda value: value > 0)),
    **dict.fromkeys(SHARES, ("from 0 to 1", lambda value: 0 <= value <= 1)),
    **dict.fromkeys(BELOW_1, ("from 0 to below 1", lambda value: 0 <= value < 1)),
    **dict.fromkeys(FINITE, ("a finite number", math.isfinite)),
    **dict.fromkeys(SEEDS, ("from 0 to 4294967295", lambda value: 0 <= value < 2**32)),
}


LARGEST_INT = 2**63 - 1  # what a tensor of integers can hold
TRUE_WORDS = {"yes", "true", "t", "y", "1"}  # TrlParser's words for flags
FALSE_WORDS = {"no", "false", "f", "n", "0"}


class MismatchError(Exception):
    """A value that its field does not take; the text says what it takes instead."""


def coerce(field: Field, value: Any) -> Any:
    """Returns the value as the field's constructor takes it.

    Args:
        field: The field to fill.
        value: A plain value, as YAML or a caller gives it.

    Returns:
        The same value; an int where the field is a float becomes a float.

    Raises:
        MismatchError: The value has another type, is not finite, out of its range, or is none of
            the choices.
    """
    result = _admit(field.hint, value)
    if field.choices is not None and result is not None and result not in field.choices:
        raise MismatchError(f"must be {one_of(field.choices)}")
    words = out_of_range(field.name, result)
    if words is not None:
        raise MismatchError(f"must be {words}")
    return result


def parse_flag(field: Field, text: str) -> Any:
    """Reads the value of a flag.

    Args:
        field: The field to fill; of a list field, one item is read.
        text: What stood on the command line.

    Returns:
        The value as the field's constructor takes it.

    Raises:
        MismatchError: The text is no such value.
    """
    parts = members(field.hint)
    kinds = {get_origin(member) or member for member in parts}
    if bool in kinds and str not in kinds:
        return _bool_from_text(field, text)
    if text[:1] in ("{", "[") and kinds & {list, tuple, dict}:
        value = _container_from_text(text)
        # A flag of a list may come as `--datasets '{...}' '{...}'`, one word an item.
        is_item = isinstance(value, dict) and dict not in kinds
        return coerce(field, [value] if is_item else value)
    if str in parts or any(is_enum(member) for member in parts):
        return coerce(field, text)
    if text.lower() in ("none", "null") and NoneType in parts:
        return None
    lists = [member for member in parts if get_origin(member) is list]
    if lists:
        item = dataclasses.replace(field, hint=get_args(lists[0])[0])
        return parse_flag(item, text)
    try:
        is_choice = any(get_origin(one) is Literal and text in get_args(one) for one in parts)
        return coerce(field, text if is_choice else parse_scalar(text))
    except ValueError as error:
        raise MismatchError("must be a shorter number") from error


def _admit(hint: Any, value: Any) -> Any:
    parts = members(hint)
    for member in sorted(parts, key=lambda member: member is float):
        try:
            return _admit_one(member, value)
        except _NotThisOneError:
            continue
    raise MismatchError(f"must be {type_words(hint)}{_advice(parts, value)}")


class _NotThisOneError(Exception):
    """The value is not of this member of a union."""


def _admit_one(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        return _require(value, any(value == c and type(value) is type(c) for c in get_args(hint)))
    if is_enum(hint):
        return _require(value, isinstance(value, str) and value in [m.value for m in hint])
    if hint is float and type(value) in (int, float):
        return _finite(value)
    if hint is int and type(value) is int and abs(value) > LARGEST_INT:
        raise MismatchError("must be a smaller number")
    if hint is str and isinstance(value, str):
        return _readable(value)
    if hint in (bool, int, NoneType):
        return _require(value, type(value) is hint)
    return _admit_container(hint, value)


def _admit_container(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if hint == list[str] and isinstance(value, str):
        # As the flag `--lora_target_modules all-linear` means a list of one.
        return [_readable(value)]
    if (origin or hint) is list and isinstance(value, list):
        inner = get_args(hint)[0] if get_args(hint) else Any
        return [_admit(inner, item) for item in value]
    if origin is tuple and isinstance(value, list) and len(value) == len(get_args(hint)):
        return [_admit(inner, item) for inner, item in zip(get_args(hint), value, strict=True)]
    if (origin or hint) is dict and isinstance(value, dict):
        inner = get_args(hint)[1] if get_args(hint) else Any
        return {key: _admit(inner, item) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _admit_mapping(hint, value)
    raise _NotThisOneError


def _require(value: Any, holds: bool) -> Any:
    if not holds:
        raise _NotThisOneError
    return value


def _finite(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError as error:
        raise MismatchError("must be a smaller number") from error
    if not math.isfinite(number):
        raise MismatchError("must be a finite number")
    return number


def _readable(text: str) -> str:
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise MismatchError("must be text in UTF-8 without null characters")
    return text


def _admit_mapping(cls: type, value: dict[str, Any]) -> dict[str, Any]:
    fields = fields_of((cls,))
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise MismatchError(f"has the unknown key {unknown[0]}; known are {', '.join(fields)}")
    absent = [field.name for field in fields.values() if field.required and field.name not in value]
    if absent:
        raise MismatchError(f"must give {absent[0]} in each mapping")
    result = {}
    for key, item in value.items():
        try:
            result[key] = coerce(fields[key], item)
        except MismatchError as error:
            raise MismatchError(f"has {key}={item!r}, which {error}") from error
    return result


def _advice(parts: list[Any], value: Any) -> str:
    if value is None:
        return "; leave the key out to get the default"
    if isinstance(value, str) and str not in parts:
        return "; write it without quotes" if not isinstance(_plain(value), str) else ""
    if str in parts and not isinstance(value, (list, dict)):
        return "; put it in quotes"
    return ""


def _plain(text: str) -> Any:
    try:
        return parse_scalar(text)
    except ValueError:
        return text


def _bool_from_text(field: Field, text: str) -> Any:
    word = text.lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    if word in ("none", "null"):
        return coerce(field, None)
    raise MismatchError(f"must be {type_words(field.hint)}")


def _container_from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MismatchError("must be valid JSON") from error


def out_of_range(key: str, value: Any) -> str | None:
    """Say what numbers a key takes, where a value is none of them.

    Args:
        key: The key.
        value: Its value, of the right type.

    Returns:
        Words that complete "must be ...", or None where nothing is wrong.
    """
    if key == "max_steps" and value == 0:
        return "-1 (go by num_train_epochs) or 1 or more"
    if key not in RANGES or type(value) not in (int, float):
        return None
    words, is_in_range = RANGES[key]
    return None if is_in_range(value) else words
