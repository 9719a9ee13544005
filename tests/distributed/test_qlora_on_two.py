"""QLoRA under DDP: each process has the 4-bit base, and two make the steps of one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.distributed import runs_on_two as two
from tests.helpers.distributed.runs_on_two import (
    fill,
    inside,
    make,
    notes,
    on_two,
    weights,
    words_of,
)

IN_4_BITS: dict[str, Any] = {"load_in_4bit": True, "use_peft": True, "lora_dropout": 0.0}
NAMES = ("sft", "reward", "ppo_adapter")
pytestmark = pytest.mark.slow  # test_recipes_on_two.py has all of it but the 4 bits


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same runs, made by one process and by two."""
    of_one, of_two = (tmp_path_factory.mktemp("on") / name for name in ("one", "two"))
    plain = {"save_strategy": "no"}
    runs = {name: two.RUNS[name] | two.LORA | IN_4_BITS | plain for name in NAMES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two, "RUNS", runs)
        patch.setattr(two, "RESUMED", {})
        for folder in (of_one, of_two):
            fill(folder)
        done = on_two(of_two, "cpu")
        assert done.returncode == 0, done.stderr[-3000:]
        with inside(of_one):
            for name in NAMES:
                make(words_of(name, use_cpu=True))
    return of_one, of_two


def test_each_process_trains_adapters_on_a_base_of_its_own_in_4_bits(
    folders: tuple[Path, Path],
) -> None:
    for rank in (0, 1):
        seen = notes(folders[1], rank)
        assert {note["run"] for note in seen} == set(NAMES)
        assert {note["processes"] for note in seen} == {2}
        assert {note["wrapped"] for note in seen} == {"DistributedDataParallel"}
        assert all("Params4bit" in note["kinds"] for note in seen)


@pytest.mark.parametrize("name", NAMES)
def test_the_adapters_are_those_of_one_process(name: str, folders: tuple[Path, Path]) -> None:
    of_one, of_two = (weights(folder / name / "final") for folder in folders)
    assert of_one.keys() == of_two.keys()
    assert all("lora_" in key or "score" in key for key in of_one)
    assert any(tensor.any() for key, tensor in of_one.items() if "lora_B" in key)
    for key, tensor in of_one.items():
        assert torch.allclose(tensor, of_two[key], rtol=1e-5, atol=1e-6), key
    summaries = [json.loads((f / name / "summary.json").read_text()) for f in folders]
    for key in summaries[0].keys() - {"seconds", "energy", "warnings", "recipe"}:
        assert summaries[1][key] == pytest.approx(summaries[0][key], rel=1e-4, abs=1e-5), key
