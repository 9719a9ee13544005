"""The plan of runs that sample: captured steps, and weights that are gathered, by hand.

The model is a Llama of width 64: 2 heads of 32 numbers, 1 of them for keys and values, 128 units,
61 words.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from recipes.lib.distributed.launch import Launch
from recipes.lib.plan.breakdown import BASE, CACHE, WORKSPACE, Plan
from recipes.lib.plan.planner import plan_of
from recipes.lib.plan.target import Target
from recipes.lib.recipe.main import parse
from tests.helpers.plan_reality import ALIKE
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import LORA, flags

PPO: dict[str, Any] = {
    "dataset_name": "rows.jsonl",
    "reward_funcs": "rewards.py:f",
    "total_episodes": 8,
    "rollout_batch_size": 8,
    "num_mini_batches": 1,
    "per_device_train_batch_size": 1,
    "sampling_batch_size": 4,
    "scoring_batch_size": 4,
    "max_prompt_length": 16,
    "max_completion_length": 8,
}
ROWS, TOKENS = 4, 16 + 8


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    assert len(tiny_tokenizer) == 61
    save_model(tmp_path / "model", tiny_tokenizer, "llama", **ALIKE)
    save_model(tmp_path / "deep", tiny_tokenizer, "llama", **ALIKE, num_hidden_layers=4)
    return tmp_path


def planned(launch: Launch = Launch(), **values: Any) -> Plan:  # noqa: B008
    config = parse("ppo", flags(PPO | values))
    return plan_of(config, Target(launch, torch.bfloat16))


def of(plan: Plan, name: str) -> dict[str, int]:
    return dict(next(phase.parts for phase in plan.phases if phase.name == name))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_captured_sampling_keeps_its_cache_in_every_phase(is_checkpointed: bool) -> None:
    values = LORA | {"dtype": "bfloat16", "gradient_checkpointing": is_checkpointed}
    plan = planned(sampler="graph", **values)
    # keys and values, 2 layers, 1 head of 32 numbers of 2 bytes
    cache = 2 * 2 * 1 * 32 * 2 * ROWS * TOKENS
    names = ["sampling", "scoring", "training", "update"]
    assert [phase.name for phase in plan.phases] == names
    assert [phase.of(CACHE) for phase in plan.phases] == [cache] * 4
    # What a captured step computes in is kept beside it by all phases but its own.
    kept = [phase.kept for phase in plan.phases]
    assert kept[0] == 0
    assert kept[1] == kept[2] == kept[3] > 0
    for phase in plan.phases[1:]:
        assert phase.allocator > phase.kept
        assert phase.total > phase.allocated + phase.kept


@pytest.mark.usefixtures("place")
def test_only_sampling_has_a_cache_where_nothing_is_captured() -> None:
    values = LORA | {"dtype": "bfloat16", "gradient_checkpointing": True}
    plan = planned(sampler="transformers", **values)
    assert plan.phases[0].of(CACHE) > 0
    assert [phase.of(CACHE) for phase in plan.phases[1:]] == [0, 0, 0]
    assert {phase.kept for phase in plan.phases} == {0}


@pytest.mark.usefixtures("place")
def test_a_captured_cache_has_the_rows_that_a_process_samples() -> None:
    values = LORA | {"dtype": "bfloat16", "sampling_batch_size": 32}
    one = planned(sampler="graph", **values)
    two = planned(Launch("ddp", 2), sampler="graph", **values)
    a_row = 2 * 2 * 1 * 32 * 2 * TOKENS
    # of a rollout of 8 each of two processes samples 4
    assert [plan.phases[2].of(CACHE) for plan in (one, two)] == [8 * a_row, 4 * a_row]


@pytest.mark.usefixtures("place")
def test_a_rollout_of_shards_gathers_all_weights_and_training_two_layers() -> None:
    values = {"model_name_or_path": "deep", "critic": "head", "sampler": "transformers"}
    one, two = planned(**values), planned(Launch("fsdp2", 2), **values)
    # Weights: queries and outputs, keys and values, three products of the units, two norms.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    # embedding and head, the last norm, a value head with 256 units and their biases
    rest = 2 * 61 * 64 + 64 + (64 * 256 + 256) + (256 + 1)
    gathered = {
        name: of(two, name)[WORKSPACE] - of(one, name)[WORKSPACE]
        for name in ("sampling", "scoring", "training")
    }
    # in the 16 bits of mixed precision
    whole = 2 * (4 * layer + rest)
    assert gathered == {"sampling": whole, "scoring": whole, "training": 2 * (2 * layer + rest)}
    # and half of it all the time, in fp32; the rotations' 16 + 16 numbers and the two of the
    # values' units are buffers
    assert of(two, "update")[BASE] == 4 * (4 * layer + 2 * 61 * 64 + 64 + 32 + 2) // 2


@pytest.mark.usefixtures("place")
def test_recipes_of_trl_gather_layer_by_layer_also_while_they_sample() -> None:
    values = {name: PPO[name] for name in ("dataset_name", "reward_funcs", "max_completion_length")}
    values |= {"model_name_or_path": "deep", "num_generations": 2, "gradient_accumulation_steps": 2}
    config = parse("grpo", flags(values))
    one, two = (
        plan_of(config, Target(launch, torch.bfloat16)) for launch in (Launch(), Launch("fsdp2", 2))
    )
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    grown = of(two, "sampling")[WORKSPACE] - of(one, "sampling")[WORKSPACE]
    assert grown == 2 * (2 * layer + 2 * 61 * 64 + 64)
