"""Two real processes play the episodes of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.helpers.distributed.turns_worker import play

WORKER = ROOT / "tests/helpers/distributed/turns_worker.py"


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    given = {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *start, str(WORKER), str(folder)],
        env=os.environ | given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("context", ["all", "last"])
def test_two_processes_play_as_one(of_two: Path, tmp_path: Path, context: str) -> None:
    play(tmp_path, context)
    one, two = (torch.load(folder / f"{context}.pt") for folder in (tmp_path, of_two))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("ids", "actions"):
        assert torch.equal(one[name], two[name]), name
    assert one["slots"] == two["slots"]
    assert len(one["slots"]) == (4 if context == "last" else 0)
    # Sums over tokens in another order: fp32 rounding, carried through twelve Adam steps.
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, two["weights"][name], atol=1e-4), name
    for of_one, of_other in zip(one["logs"], two["logs"], strict=True):
        for key in of_one:
            assert of_other[key] == pytest.approx(of_one[key], rel=1e-3, abs=1e-4), key
