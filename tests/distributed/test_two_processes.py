"""Two real processes under DDP follow the same episodes and updates as one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).parent / "ppo_worker.py"
ROOT = WORKER.parent.parent.parent


def launch(num_processes: int, model: Path, out: Path, critic: str) -> tuple[dict[str, Any], Any]:
    out.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    done = subprocess.run(
        [sys.executable, *start, str(WORKER), str(model), str(out), critic],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "facts.json").read_text()), torch.load(out / "w.pt")


@pytest.mark.parametrize("critic", ["model"])
def test_two_processes_equal_one(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, critic: str
) -> None:
    model = tmp_path / "model"
    tiny_model.save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    one, weights_of_one = launch(1, model, tmp_path / "one", critic)
    two, weights_of_two = launch(2, model, tmp_path / "two", critic)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["wrapped"] == "DistributedDataParallel"
    for name, weight in weights_of_one.items():
        # sums over tokens in another order: fp32 rounding, carried through twelve Adam steps
        assert torch.allclose(weight, weights_of_two[name], atol=1e-4), name
    assert len(one["logs"]) == len(two["logs"]) == 3
    for of_one, of_two in zip(one["logs"], two["logs"], strict=True):
        timeless = {key for key in of_one if not key.startswith("time/")}
        for key in timeless:
            assert of_two[key] == pytest.approx(of_one[key], rel=1e-3, abs=1e-4), key
