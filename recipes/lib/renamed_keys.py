"""Keys of earlier TRL, transformers and alignment-handbook files, under the names they have now.

A file that trained with those runs here: each old key is translated or left out with one remark,
and refused with the reason where that would change what the run computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.notes import note
from recipes.lib.renamed_data import BESIDE, DATA_KEYS, with_files

Values = dict[str, Any]

# By recipe, "" for all. A name is only translated for a recipe that has the new key.
RENAMED: dict[str, dict[str, str]] = {
    "": {
        "torch_dtype": "dtype",
        "max_seq_length": "max_length",
        "evaluation_strategy": "eval_strategy",
        "warmup_ratio": "warmup_steps",  # below 1 it is a share of the steps
        "no_cuda": "use_cpu",
        "use_liger": "use_liger_kernel",
        "overwrite_output_dir": "overwrite",
        "per_gpu_train_batch_size": "per_device_train_batch_size",
        "per_gpu_eval_batch_size": "per_device_eval_batch_size",
        "push_to_hub_model_id": "hub_model_id",
        "push_to_hub_token": "hub_token",
        "preprocessing_num_workers": "dataset_num_proc",
        "test_split_size": "test_fraction",
        "exp_name": "run_name",
        "dataset_streaming": "streaming",
        "wandb_log_unique_prompts": "log_unique_prompts",
        "response_length": "max_completion_length",
        "sft_model_path": "model_name_or_path",
    },
    "ppo": {
        "batch_size": "rollout_batch_size",
        "local_rollout_forward_batch_size": "sampling_batch_size",
        "value_model_path": "critic_model_name_or_path",
    },
    "rloo": {
        "rloo_k": "num_generations",
        "kl_coef": "beta",
        "cliprange": "epsilon",
        "num_ppo_epochs": "num_iterations",
    },
}

# What is left out, and why that changes nothing, or little.
LEFT_OUT = {
    "max_prompt_length": "TRL no longer cuts prompts of their own; max_length cuts the whole row",
    "max_target_length": "TRL no longer cuts completions of their own; max_length cuts the row",
    "max_completion_length": "TRL no longer cuts completions of their own; max_length cuts the row",
    "truncation_mode": "TRL cuts the end of a row here",
    "num_of_sequences": "packing no longer needs an estimate",
    "chars_per_token": "packing no longer needs an estimate",
    "dataset_batch_size": "packing no longer needs it",
    "label_pad_token_id": "TRL pads labels by itself",
    "padding_value": "TRL pads by itself",
    "use_logits_to_keep": "TRL chooses by itself",
    "ignore_bias_buffers": "it was for debugging",
    "use_legacy_prediction_loop": "it has no effect any more",
    "save_safetensors": "models are always saved as safetensors",
    "logging_dir": "trackers choose their own folder",
    "half_precision_backend": "PyTorch's own is used",
    "fp16_backend": "PyTorch's own is used",
    "include_tokens_per_second": "speeds are logged as the trainer has them",
    "use_mps_device": "the device is found by itself",
    "tpu_num_cores": "the device is found by itself",
    "local_rollout_forward_batch_size": "TRL chooses by itself",
    "ds3_gather_for_generation": "there is no such choice here",
    "model_code_revision": "the model and its code have one model_revision",
    "tokenizer_name_or_path": "the tokenizer is the model's own",
}

# Where the reason is another one.
LEFT_OUT_OF = {
    recipe: {
        "max_prompt_length": "TRL no longer cuts prompts; they are sampled from whole, and have to "
        "fit the model's context with max_completion_length"
    }
    for recipe in ("rloo", "grpo")
}

# What cannot be left out, and what to do.
REFUSED = {
    "chat_template": "a template in the configuration; save it as a .jinja file and name that with "
    "chat_template_path",
    "stop_token_id": "an id is one of a certain tokenizer; give the token itself as stop_token",
    "reward_model_path": "this recipe has no reward model",
    "mini_batch_size": "it was derived; set rollout_batch_size and num_mini_batches",
    "local_batch_size": "it was derived; set rollout_batch_size",
    "num_total_batches": "it was derived; set total_episodes",
    "model_adapter_name": "the reference is the model with its adapter off; leave it out",
    "ref_adapter_name": "the reference is the model with its adapter off; leave it out",
    "force_use_ref_model": "the reference is the model that the run starts from; leave it out",
    "normalize_reward": "RLOO's advantages are rewards less their baseline; leave it out",
    "reference_free": "DPO without a reference is no longer in TRL; leave it out",
    "rpo_alpha": "it is a second loss now; set loss_type: [sigmoid, sft] with loss_weights: "
    "[1.0, ALPHA]",
    "generate_during_eval": "completions are sampled by `rlhf evaluate`; leave it out",
    "label_names": "TRL names the labels itself; leave it out",
}


def translate(
    recipe: str, values: Values, known: Container[str], where: Callable[[str], str]
) -> tuple[Values, dict[str, str]]:
    """Bring the keys of a file to today's names, with one remark for each that is not.

    Args:
        recipe: Name of the recipe.
        values: The file's keys.
        known: Today's keys of the recipe.
        where: Says where a key stands in the file.

    Returns:
        The values by today's keys, and the old key that each translated one came from.

    Raises:
        UserError: An old key cannot be translated, or the new one is set too.
    """
    result = {key: value for key, value in values.items() if key in known}
    origins: dict[str, str] = {}
    for key in values:
        if key in known:
            continue
        found = _translated(recipe, key, values, known)
        if found is None:
            reason = LEFT_OUT_OF.get(recipe, LEFT_OUT).get(key, LEFT_OUT.get(key))
            if reason is not None:
                note(f"{key} ({where(key)}) is left out: {reason}.")
                continue
            if key in REFUSED:
                raise UserError(f"{key} ({where(key)}): {REFUSED[key]}.")
            result[key] = values[key]  # refused as unknown, by the name that the user wrote
            continue
        if key not in MERGED:
            _refuse_both(key, found, values, where)
        _tell(key, found, where)
        result |= found
        origins |= dict.fromkeys(found, key)
    _change_values(recipe, result, origins, where)
    return result, origins


def new_name(recipe: str, key: str, known: Container[str]) -> str | None:
    """Today's name of an old key.

    Args:
        recipe: Name of the recipe.
        key: The old key.
        known: Today's keys of the recipe.

    Returns:
        The name, or None where the key has no successor.
    """
    name = RENAMED.get(recipe, {}).get(key) or RENAMED[""].get(key)
    return name if name is not None and name in known else None


def _translated(recipe: str, key: str, values: Values, known: Container[str]) -> Values | None:
    changes = SPECIAL.get(key) or DATA_KEYS.get(key)
    if changes is not None:
        found = changes(values)
        if found is not None and all(name in known for name in found):
            return found
        return None
    name = new_name(recipe, key, known)
    return None if name is None else {name: values[key]}


def _refuse_both(key: str, found: Values, values: Values, where: Callable[[str], str]) -> None:
    both = [name for name in found if name in values]
    if both:
        raise UserError(
            f"{key} ({where(key)}) is the old name of {both[0]}, which is set too "
            f"({where(both[0])}); leave {key} out."
        )


def _tell(key: str, found: Values, where: Callable[[str], str]) -> None:
    # Without the value of a key that was only renamed: it may be a token.
    is_plain = len(found) == 1 and key not in (*SPECIAL, *DATA_KEYS)
    shown = ", ".join(name if is_plain else f"{name}={found[name]!r}" for name in found)
    if found:
        note(f"{key} ({where(key)}) is now written {shown}; it is read as that.")
    elif key not in BESIDE:  # what stands beside another key is told with that one
        note(f"{key} ({where(key)}) is left out: its value is the default.")


def _change_values(
    recipe: str, values: Values, origins: dict[str, str], where: Callable[[str], str]
) -> None:
    """Changes the values of keys that have kept their name but not all of their meaning."""
    parts = with_files(values.get("datasets"))
    if parts != values.get("datasets"):
        note(f"datasets ({where('datasets')}): data_files is now written path; it is read as that.")
        values["datasets"] = parts
    if recipe == "ppo" and "gradient_accumulation_steps" in values:
        found = rollout_batches(values)
        if found:
            _tell("gradient_accumulation_steps", found, where)
            del values["gradient_accumulation_steps"]
            values |= found
            origins |= dict.fromkeys(found, "gradient_accumulation_steps")


def _flash_attention(values: Values) -> Values:
    return {"attn_implementation": "flash_attention_2"} if values["use_flash_attention_2"] else {}


def _by_length(values: Values) -> Values:
    return {"train_sampling_strategy": "group_by_length"} if values["group_by_length"] else {}


def _adafactor(values: Values) -> Values:
    return {"optim": "adafactor"} if values["adafactor"] else {}


def _log_completions(values: Values) -> Values:
    return {"log_completions": bool(values["num_sample_generations"])}


def _reward_funcs(values: Values) -> Values:
    given = values.get("reward_funcs") or []
    paths = [values.get("reward_model_path"), values.get("reward_model_name_or_path")]
    return {"reward_funcs": [*([given] if isinstance(given, str) else given), *filter(None, paths)]}


def rollout_batches(values: Values) -> Values:
    """The batches of TRL 1.12's PPO, which followed from the accumulation, by today's keys.

    Args:
        values: The file's keys, with gradient_accumulation_steps.

    Returns:
        rollout_batch_size, with what must divide it; empty where the file states rollout_batch_size
        or holds no whole numbers.
    """
    names = ("gradient_accumulation_steps", "per_device_train_batch_size", "num_mini_batches")
    sizes = [values.get(name, default) for name, default in zip(names, (1, 8, 1), strict=True)]
    is_stated = "rollout_batch_size" in values
    if is_stated or not all(type(size) is int and size > 0 for size in sizes):
        return {}
    accumulation, micro_batch, mini_batches = sizes
    share = accumulation * micro_batch  # episodes of one process
    found = {"rollout_batch_size": share * int(os.environ.get("WORLD_SIZE", "1"))}
    if share % mini_batches == 0 and micro_batch > share // mini_batches:
        found["per_device_train_batch_size"] = share // mini_batches
    episodes, batch = values.get("total_episodes"), found["rollout_batch_size"]
    if type(episodes) is int and episodes % batch:
        found["total_episodes"] = episodes + batch - episodes % batch  # TRL rounded up, too
    return found


# Keys whose value changes with the name.
SPECIAL: dict[str, Callable[[Values], Values | None]] = {
    "use_flash_attention_2": _flash_attention,
    "group_by_length": _by_length,
    "adafactor": _adafactor,
    "num_sample_generations": _log_completions,
    "reward_model_path": _reward_funcs,
    "reward_model_name_or_path": _reward_funcs,
}
# Those that go together with the new key. TRL's PPO took the tokenizer from model_name_or_path and
# the policy from sft_model_path.
MERGED = ("sft_model_path", "reward_model_path", "reward_model_name_or_path")
