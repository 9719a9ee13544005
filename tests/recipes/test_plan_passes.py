"""The plan of a pass against the pass: every tensor of real training steps on the CPU, counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from recipes.lib.plan.breakdown import (
    ACTIVATIONS,
    ADAPTERS,
    BASE,
    GRADIENTS,
    HEADS,
    LOGITS,
    OPTIMIZER,
    OTHER_MODELS,
    WORKSPACE,
    Plan,
)
from recipes.lib.plan.planner import plan_of
from recipes.lib.plan.target import Target
from recipes.lib.recipe.main import parse
from tests.helpers.plan_reality import ALIKE, Measured, measured_run, rows_of, write_reward
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags, write

ROWS = 4
COMPLETION = 8
UNITS = 8  # bytes of the critic's two buffers beside the policy's weights
STEP = {"max_steps": 2, "per_device_train_batch_size": ROWS, "learning_rate": 1e-4}
SAMPLED = {"reward_funcs": ["rewards.py:odd"], "max_completion_length": COMPLETION}
EPISODES = {
    "max_prompt_length": 16,
    "total_episodes": 2 * ROWS,
    "rollout_batch_size": ROWS,
    "per_device_train_batch_size": ROWS,
    "num_ppo_epochs": 1,
}
VALUES: dict[str, dict[str, Any]] = {
    "sft": STEP,
    "dpo": STEP,
    "kto": STEP,
    "reward": STEP | {"test_fraction": 0.5},
    "rloo": STEP | SAMPLED | {"num_generations": ROWS},
    "grpo": STEP | SAMPLED | {"num_generations": ROWS, "beta": 0.1},
    "ppo": SAMPLED | EPISODES,
}
LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
HALF = {"dtype": "bfloat16", "bf16": True}
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "full in bf16": {"bf16": True},
    "lora": LORA,
    "lora in bf16": LORA | HALF,
    "nf4": LORA | HALF | {"load_in_4bit": True},
    "nf4 twice, plain": LORA | {"load_in_4bit": True, "use_bnb_nested_quant": True},
    "int8": LORA | HALF | {"load_in_8bit": True},
}
CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("sft", "llama", "lora in bf16", {"gradient_checkpointing": True}),
    ("sft", "gpt2", "full", {"gradient_accumulation_steps": 2}),
    ("dpo", "llama", "full in bf16", {}),
    ("kto", "llama", "lora", {}),
    ("reward", "qwen3", "nf4", {"gradient_checkpointing": True}),
    ("reward", "gemma3", "nf4 twice, plain", {}),
    ("reward", "llama", "int8", {}),
    ("grpo", "llama", "full", {}),
    ("rloo", "llama", "nf4", {"optim": "adamw_8bit"}),
    ("ppo", "phi", "lora", {"critic": "adapter"}),
    ("ppo", "llama", "nf4", {"critic": "adapter", "gradient_checkpointing": True}),
    ("ppo", "qwen3", "full", {"critic": "model", "optim": "adafactor"}),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_reward(tmp_path)
    return tmp_path


def planned(recipe: str, values: dict[str, Any], found: Measured) -> Plan:
    """The plan for rows as wide as the measured ones, on the paths of the CPU."""
    more: dict[str, Any] = {"output_dir": "other"}
    if recipe in ("sft", "dpo", "kto", "reward"):
        more["max_length"] = found.width
    elif recipe == "ppo":
        more["max_prompt_length"] = found.width - COMPLETION
    config = parse(recipe, flags(values | more))
    autocast = torch.bfloat16 if values.get("bf16") else None
    target = Target(autocast=autocast, prompt_length=found.width - COMPLETION, on_card=False)
    return plan_of(config, target)


# The same paths of the plan as another case of its recipe or model.
LONG = (CASES[2], CASES[3], CASES[4], CASES[8], CASES[9])


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case in LONG else ()) for case in CASES],
    ids=lambda case: "-".join(case[:3]),
)
def test_the_plan_is_what_a_training_step_takes(
    case: tuple[str, str, str, dict[str, Any]],
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, model, mode, more = case
    save_model(place / "model", tiny_tokenizer, model, **({} if model == "gpt2" else ALIKE))
    write(place / "rows.jsonl", rows_of(recipe))
    values = VALUES[recipe] | MODES[mode] | {"dataset_name": "rows.jsonl"} | more
    found, code = measured_run(monkeypatch, recipe, values)
    assert code == 0
    plan = planned(recipe, values, found)
    phases = {phase.name: phase.parts for phase in plan.phases}
    training, update = phases["training"], phases["update"]
    own = (BASE, ADAPTERS, HEADS, *((OTHER_MODELS,) if values.get("critic") == "model" else ()))
    held = sum(training[thing] for thing in own)
    if values.get("critic") == "model":  # the reference is a further copy, in no module of the step
        held -= training[BASE] - UNITS
    assert held == found.weights
    assert training[OPTIMIZER] == found.optimizer
    assert update[GRADIENTS] == found.gradients
    passing: tuple[str, ...] = (ACTIVATIONS, LOGITS, WORKSPACE)
    if "gradient_accumulation_steps" not in values:
        passing += (GRADIENTS,)
    taken = sum(training.get(thing, 0) for thing in passing)
    assert taken == pytest.approx(found.pass_bytes, rel=0.01)
