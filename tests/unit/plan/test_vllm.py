"""A card that vLLM shares with the training: what has to be on it, by hand, and what is refused.

Llama-3.1-8B has 8,030,261,248 weights, 14.957 GiB in 16 bits; a token of its cache takes keys and
values of 32 layers, 8 heads and 128 numbers of 2 bytes: 131,072 bytes.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.config.parse import Config
from recipes.lib.distributed.launch import Launch
from recipes.lib.plan.model_shapes import shipped_models
from recipes.lib.plan.refusal_conditions import Card
from recipes.lib.plan.refusals import refusals
from recipes.lib.plan.vllm import vllm_needs
from recipes.lib.recipe.main import parse
from tests.helpers.tiny_runs import flags

NAME = "vLLM colocate without room"
WEIGHTS = 8_030_261_248 * 2 / 2**30
DDP, FSDP2 = Launch("ddp", 2), Launch("fsdp2", 2)
CARD = Card(80.0, 2)
KEYS = {
    "dataset_name": "rows.jsonl",
    "reward_funcs": "rewards.py:f",
    "use_vllm": True,
    "vllm_mode": "colocate",
    "dtype": "bfloat16",
    "max_completion_length": 1024,
    "beta": 0.0,
}


@pytest.fixture
def shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's configuration without any weights, as for a Hub id that is not downloaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(
        json.dumps(shipped_models()["meta-llama/Llama-3.1-8B"])
    )
    return tmp_path


def grpo(**keys: Any) -> Config:
    return parse("grpo", flags(KEYS | keys))


def refused(config: Config, launch: Launch = DDP, card: Card = CARD) -> list[str]:
    return [wrong for line, wrong in refusals(config, launch, card) if line.name == NAME]


@pytest.mark.usefixtures("shape")
def test_what_a_card_holds_is_that_of_the_shapes() -> None:
    whole = vllm_needs(grpo(), DDP)
    assert whole is not None
    # 1,024 tokens of 131,072 bytes are 2^27 bytes; the tables of the rotations are a few bytes.
    assert whole.served == pytest.approx(WEIGHTS)
    assert whole.cache == 1 / 8
    assert whole.trained == pytest.approx(WEIGHTS, rel=1e-6)
    halved = vllm_needs(grpo(vllm_tensor_parallel_size=2, dtype="float32"), FSDP2)
    assert halved is not None
    assert halved.served == pytest.approx(WEIGHTS / 2)
    assert halved.cache == 1 / 16
    assert halved.trained == pytest.approx(WEIGHTS, rel=1e-6)  # 4 bytes a weight, half of them


@pytest.mark.parametrize(
    ("keys", "launch", "said"),
    [
        # 0.19 of 80 GiB are 15.2, weights and cache 15.08
        ({"vllm_gpu_memory_utilization": 0.19}, DDP, ""),
        ({"vllm_gpu_memory_utilization": 0.18}, DDP, "is 14.4, and vLLM's weights take 15.0"),
        # a sequence of 8,192 tokens takes a GiB
        (
            {"vllm_gpu_memory_utilization": 0.19, "vllm_max_model_length": 8192},
            DDP,
            "is 15.2, and vLLM's weights take 15.0 and the cache of one sequence 1.00",
        ),
        # on two cards each has half of the weights, 7.48, and the whole share
        ({"vllm_gpu_memory_utilization": 0.1, "vllm_tensor_parallel_size": 2}, DDP, ""),
        (
            {"vllm_gpu_memory_utilization": 0.09, "vllm_tensor_parallel_size": 2},
            DDP,
            "is 7.2, and vLLM's weights take 7.5",
        ),
        # 0.82 leaves 14.4: too little for the whole model, enough for a half
        (
            {"vllm_gpu_memory_utilization": 0.82},
            DDP,
            "of 80.0 GiB leaves 14.4, and the training's weights take 15.0",
        ),
        (
            {"vllm_gpu_memory_utilization": 0.82, "vllm_tensor_parallel_size": 2},
            DDP,
            "leaves 14.4, and the training's weights take 15.0",
        ),
        ({"vllm_gpu_memory_utilization": 0.82}, FSDP2, ""),
        # two copies: the reference is held beside the policy
        (
            {"vllm_gpu_memory_utilization": 0.65, "beta": 0.1},
            DDP,
            "leaves 28.0, and the training's weights take 29.9",
        ),
        ({"vllm_gpu_memory_utilization": 0.9, "vllm_mode": "server"}, DDP, ""),
        ({"vllm_gpu_memory_utilization": 0.9, "use_vllm": False}, DDP, ""),
    ],
)
@pytest.mark.usefixtures("shape")
def test_a_share_is_refused_where_one_of_both_has_no_room(
    keys: dict[str, Any], launch: Launch, said: str
) -> None:
    found = refused(grpo(**keys), launch)
    assert len(found) == bool(said)
    assert all(said in wrong for wrong in found)


@pytest.mark.usefixtures("shape")
def test_ppo_has_room_for_the_longest_prompt_and_completion() -> None:
    keys = {name: KEYS[name] for name in ("dataset_name", "reward_funcs", "dtype")}
    keys |= {"sampler": "vllm", "use_peft": True, "max_prompt_length": 1024}
    config = parse("ppo", flags(keys | {"max_completion_length": 3072}))
    found = vllm_needs(config, DDP)
    assert found is not None
    assert found.cache == 1 / 2  # 4,096 tokens
    # Under LoRA the reference is the base itself; adapters of rank 16 on q_proj and v_proj, the
    # policy's and the critic's: 32 layers, 16 * (4096 + 4096) and 16 * (4096 + 1024) in fp32.
    adapters = 2 * 32 * 16 * (8192 + 5120) * 4
    assert found.trained == pytest.approx(WEIGHTS + adapters / 2**30, abs=1e-3)
    assert refused(config) == []  # 0.3 of 80 is 24
    assert len(refused(config, card=Card(48.0, 2))) == 1  # and of 48 it is 14.4


def test_a_model_of_unknown_shapes_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(grpo(vllm_gpu_memory_utilization=0.99)) == []


@pytest.mark.usefixtures("shape")
def test_a_plan_that_fails_for_its_own_reasons_refuses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no shapes for this model")

    monkeypatch.setattr("recipes.lib.plan.planner.plan_of", fails)
    assert refused(grpo(vllm_gpu_memory_utilization=0.99)) == []
