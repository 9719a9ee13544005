"""What `rlhf plan` tries first, and what it leaves alone."""

from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.plan.advice import _offers, find_changes
from recipes.lib.plan.breakdown import BASE, MemoryPhase, Plan
from recipes.lib.recipe.main import parse

VALUES = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
BATCHES = [
    ("sft", "training", "per_device_train_batch_size"),
    ("dpo", "evaluation", "per_device_eval_batch_size"),
    ("reward", "scoring", "scoring_batch_size"),
    ("reward", "saving", "scoring_batch_size"),
    ("ppo", "sampling", "sampling_batch_size"),
    ("ppo", "scoring", "scoring_batch_size"),
    ("rloo", "sampling", "steps_per_generation"),
    ("grpo", "scoring", "per_device_train_batch_size"),
]


def read(recipe: str, values: dict[str, Any]) -> Any:
    rewards = {"reward_funcs": ["my/reward"]} if recipe in ("ppo", "rloo", "grpo") else {}
    return parse(recipe, [], VALUES | rewards | values)


@pytest.mark.parametrize(("recipe", "phase", "key"), BATCHES)
def test_the_cheapest_change_is_half_the_batch_of_the_phase(
    recipe: str, phase: str, key: str
) -> None:
    sizes = {"per_device_train_batch_size": 8}
    if recipe in ("rloo", "grpo"):
        sizes["steps_per_generation"] = 8
    name, now, after, _ = next(_offers(read(recipe, sizes), phase, {}))
    assert (name, after) == (key, now // 2)


def test_an_update_has_no_batch() -> None:
    config = read("sft", {"per_device_train_batch_size": 8})
    assert "batch" not in next(_offers(config, "update", {}))[0]


def test_a_change_that_the_recipe_refuses_is_not_named() -> None:
    def planner(changes: dict[str, Any]) -> tuple[Any, Plan]:
        if "gradient_checkpointing" in changes:
            raise UserError("not this one")
        size = 2**40 >> len(changes)  # whatever is changed helps
        plan = Plan("sft", "model", (MemoryPhase("training", {BASE: size}),), 1, 1)
        return read("sft", {"per_device_train_batch_size": 1} | changes), plan

    changes, fits = find_changes(planner, 2**39)
    assert fits
    assert [change.key for change in changes] == ["optim", "max_length"]
