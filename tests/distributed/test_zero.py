"""ZeRO-2 and ZeRO-3 over gloo, through the shim: the steps of one process, checkpoints, shards."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.distributed import runs_on_two as two_processes

RUNS = ("sft", "reward")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_a_run_in_deepspeeds_engine_is_that_of_one_process(kind: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / kind
    with pytest.MonkeyPatch.context() as patch:
        few = {name: two_processes.RUNS[name] for name in RUNS}
        patch.setattr(two_processes, "RUNS", few)
        patch.setattr(two_processes, "RESUMED", {"sft": "sft_resumed"})
        for folder, use_cpu in ((one, True), (two, False)):
            two_processes.fill(folder, use_cpu)
        done = two_processes.on_two(two, kind)
        assert done.returncode == 0, done.stderr[-3000:]
        with two_processes.inside(one):
            for name in RUNS:
                two_processes.make(two_processes.words_of(name, use_cpu=True))
    seen = json.loads((two / "notes1.json").read_text())
    assert {note["wrapped"] for note in seen} == {"DeepSpeedEngine"}
    assert {note["processes"] for note in seen} == {2}
    assert {note["is_in_shards"] for note in seen} == {kind == "zero3"}
    for name in RUNS:
        of_one, of_two = (two_processes.weights(f / name / "final") for f in (one, two))
        assert of_one.keys() == of_two.keys()
        for key, tensor in of_one.items():
            assert torch.allclose(tensor, of_two[key], rtol=1e-5, atol=1e-6), key
    resumed = two_processes.weights(two / "sft_resumed/final")
    assert [note["step"] for note in seen if note["run"] == "sft_resumed"] == [3]
    assert all(
        torch.equal(resumed[key], tensor)
        for key, tensor in two_processes.weights(two / "sft/final").items()
    )
