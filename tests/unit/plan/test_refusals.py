"""The table of what does not go with several processes, line by line, without starting any."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from recipes.lib.config.parse import Config
from recipes.lib.distributed.launch import Launch
from recipes.lib.errors import UserError
from recipes.lib.models.policies import own_card
from recipes.lib.plan.refusal_conditions import Card, kind_of
from recipes.lib.plan.refusals import TABLE, refusals, refuse
from recipes.lib.recipe.main import parse
from recipes.lib.runs.checkpoints import seal
from tests.helpers.tiny_runs import flags

ROOT = Path(__file__).parents[3]
DDP, FSDP2, ZERO2, ZERO3 = (Launch(kind, 8) for kind in ("ddp", "fsdp2", "zero2", "zero3"))
H100 = Card(80.0, 8)
CASES: dict[str, tuple[str, dict[str, Any], Launch, Launch]] = {
    # line of the table: recipe, keys, a launch that is refused, one that is not
    "QLoRA with ZeRO-3": ("sft", {"load_in_4bit": True, "use_peft": True}, ZERO3, ZERO2),
    "int8 with FSDP": ("sft", {"load_in_8bit": True, "use_peft": True}, FSDP2, DDP),
    "4-bit with FSDP": ("ppo", {"load_in_4bit": True, "use_peft": True}, FSDP2, DDP),
    "vLLM sampler with FSDP or ZeRO-3": ("ppo", {"sampler": "vllm"}, FSDP2, DDP),
    "several processes with device_map": (
        "sft",
        {"model_init_kwargs": '{"device_map": "auto"}'},
        DDP,
        Launch("single", 1),
    ),
    "batches that do not divide": (
        "sft",
        {"global_batch_size": 24, "per_device_train_batch_size": 2},
        DDP,
        Launch("ddp", 4),
    ),
    "FSDP or DeepSpeed on the CPU": ("sft", {}, Launch("fsdp2", 2, True), Launch("ddp", 2, True)),
    "FSDP1": ("sft", {}, Launch("fsdp1", 2), FSDP2),
    "critic warm-up with DeepSpeed": ("ppo", {"critic_warmup_rollouts": 1}, ZERO2, FSDP2),
    "more processes than cards": (
        "ppo",
        {"rollout_batch_size": 72, "total_episodes": 72, "per_device_train_batch_size": 1},
        Launch("ddp", 9),
        Launch("ddp", 9, num_machines=3),
    ),
}


def config_of(recipe: str, **values: Any) -> Config:
    data = {"dataset_name": "rows.jsonl"}
    if recipe == "ppo":
        data["reward_funcs"] = "r.py:f"
    return parse(recipe, flags(data | values))


def names(config: Config, launch: Launch, card: Card | None = H100) -> list[str]:
    return [line.name for line, _ in refusals(config, launch, card)]


@pytest.mark.parametrize("name", CASES)
def test_a_line_applies_to_the_launch_that_fails_and_to_no_other(name: str) -> None:
    recipe, values, refused, allowed = CASES[name]
    config = config_of(recipe, **values)
    assert names(config, refused) == [name]
    assert names(config, allowed) == []


def test_every_line_has_reason_remedy_and_evidence() -> None:
    tested = {"graph sampler with FSDP or ZeRO-3", "vLLM colocate without room"}
    tested |= {"a checkpoint of another launch kind"}
    assert {line.name for line in TABLE} == set(CASES) | tested
    for line in TABLE:
        assert line.reason
        assert line.remedy
        for source in line.evidence.split(", "):
            is_issue = re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", source)
            assert is_issue or (ROOT / source).is_file(), source


class Sampling:
    """Keys of a sampler, as the trainer's configuration has them."""

    def __init__(self, **keys: Any) -> None:
        vars(self).update({"resume_from_checkpoint": None, "per_device_train_batch_size": 1} | keys)


@pytest.mark.parametrize(
    ("launch", "refused"), [(FSDP2, True), (ZERO3, True), (ZERO2, False), (DDP, False)]
)
def test_the_graph_sampler_needs_weights_that_stay_where_they_are(
    launch: Launch, refused: bool
) -> None:
    config = Config("ppo", None, (), {}, None, Sampling(sampler="graph"), None)
    assert names(config, launch) == ["graph sampler with FSDP or ZeRO-3"] * refused


def checkpoint(folder: Path, launch: Launch | None, file: str = "optimizer.pt") -> Path:
    path = folder / "run/checkpoint-3"
    (path / file).parent.mkdir(parents=True)
    (path / file).write_bytes(b"x")
    if launch is not None:
        seal(path, 3, launch=launch.told())
    return path


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        (Launch("zero2", 2), Launch("single", 1), True),
        (Launch("zero2", 2), Launch("zero2", 2), False),
        (Launch("zero2", 2), Launch("zero2", 4), True),
        (Launch("zero2", 2), Launch("zero3", 2), True),
        (Launch("fsdp2", 2), Launch("ddp", 2), True),
        (Launch("fsdp2", 2), Launch("fsdp2", 1), False),
        (Launch("ddp", 2), Launch("single", 1), False),
        (Launch("single", 1), Launch("ddp", 8), False),
        (Launch("ddp", 2), Launch("fsdp2", 2), True),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_and_ddp_is_as_one_process(
    before: Launch, now: Launch, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path, before)
    config = config_of("sft", resume=True)
    assert names(config, now) == ["a checkpoint of another launch kind"] * refused
    assert names(config_of("sft"), now) == []
    named = config_of("sft", resume_from_checkpoint="run/checkpoint-3")
    assert names(named, now) == ["a checkpoint of another launch kind"] * refused


@pytest.mark.parametrize(
    ("file", "kind"),
    [("optimizer.pt", "single"), ("optimizer_0/x", "fsdp"), ("global_step3/x", "zero")],
)
def test_a_checkpoint_without_a_manifest_is_known_by_its_files(
    file: str, kind: str, tmp_path: Path
) -> None:
    assert kind_of(checkpoint(tmp_path, None, file)) == (kind, None)


def test_a_run_is_refused_in_one_sentence_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path, Launch("zero2", 2))
    with pytest.raises(UserError) as caught:
        refuse(config_of("sft", resume=True))
    assert str(caught.value) == (
        "run/checkpoint-3 is of zero2 with 2 processes, not single with 1: its optimizer cannot be "
        "read there, or would be left out without a word; start it as before, or another run from "
        "its model."
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch("single", 1)),
        ({"WORLD_SIZE": "2"}, Launch("ddp", 2)),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, Launch("ddp", 4, num_machines=2)),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}, Launch("ddp", 2, True)),
        (
            {"WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            Launch("fsdp2", 4),
        ),
        (
            {
                "WORLD_SIZE": "4",
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
            },
            Launch("zero3", 4),
        ),
    ],
)
def test_a_process_knows_how_it_was_started(
    environment: dict[str, str], expected: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Launch.here() == expected


def test_deepspeed_of_the_trainer_itself_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert Launch.here(Sampling(deepspeed=str(path))).kind == "zero3"
    assert Launch.here(Sampling(fsdp=True, fsdp_config={"version": 1})).kind == "fsdp1"


def test_quantized_weights_go_to_the_card_of_their_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert own_card() is None
    state = PartialState()
    monkeypatch.setitem(state._shared_state, "num_processes", 2)
    monkeypatch.setitem(state._shared_state, "device", torch.device("cuda", 1))
    assert own_card() == {"": 1}
