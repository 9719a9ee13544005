"""Files of TRL's own PPO: the batch that followed from the accumulation, and other defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from recipes.lib.config.fields import Field

Values = dict[str, Any]

# Keys that no file of this project has.
SIGNS = (
    "sft_model_path",
    "reward_model_path",
    "response_length",
    "value_model_path",
    "local_rollout_forward_batch_size",
    "num_sample_generations",
    "ppo_epochs",
    "init_kl_coef",
)
DEFAULTS = {  # of TRL 1.12's PPOConfig
    "temperature": 0.7,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
}


def sign_of_trl(values: Values) -> str | None:
    """Find what shows that a file was written for TRL's own PPO.

    Args:
        values: The file's keys, as they stand there.

    Returns:
        A key of it that only TRL's PPO had, or None.
    """
    return next((sign for sign in SIGNS if sign in values), None)


def other_defaults(values: Values, fields: Mapping[str, Field]) -> str | None:
    """Name the keys that a file leaves to defaults which are not those of TRL's PPO.

    Args:
        values: The file's keys, by today's names.
        fields: The keys of PPO, with their defaults here.

    Returns:
        A sentence without its full stop, or None where the file states them all.
    """
    told = [
        f"{key} {fields[key].default} ({value} there)"
        for key, value in DEFAULTS.items()
        if key not in values and fields[key].default != value
    ]
    if not told:
        return None
    return "defaults here that differ from those of TRL's PPO: " + ", ".join(told)


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
