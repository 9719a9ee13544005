"""What would happen without the refusals of plan/refusals.py, shown by real processes over gloo."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.lib.errors import UserError
from recipes.lib.runs.lock import acquire, release
from tests.helpers.distributed import runs_on_two
from tests.helpers.distributed.recipes_worker import cut
from tests.helpers.tiny_runs import snapshot

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
SHARDS = {
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
}
# With moments, so that a run that lost them is another one.
MOMENTS = {"optim": "adamw_torch", "learning_rate": 0.01}


def on_two(folder: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    known = os.environ | {"PYTHONPATH": runs_on_two.search_path(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=known | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def only_sft(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"sft": runs_on_two.RUNS["sft"] | MOMENTS}
    monkeypatch.setattr(runs_on_two, "RUNS", runs)
    monkeypatch.setattr(runs_on_two, "RESUMED", {})


@pytest.mark.slow  # facts about accelerate, peft and DeepSpeed, which only their releases change
@pytest.mark.parametrize("kind", SHARDS)
def test_accelerate_makes_no_shards_on_the_cpu_and_says_nothing(kind: str, tmp_path: Path) -> None:
    if kind == "zero2" and not HAS_DEEPSPEED:
        pytest.skip("deepspeed is not installed")
    worker = str(runs_on_two.WORKER.with_name("sharded_on_cpu.py"))
    start = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", worker, "notes"]
    done = on_two(tmp_path, start, ACCELERATE_USE_CPU="true", **SHARDS[kind])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "shard" not in (done.stdout + done.stderr).lower()
    for rank in (0, 1):
        told = json.loads((tmp_path / f"notes{rank}.json").read_text())
        # 4 * 4 + 4 and 4 * 2 + 2 numbers: each process has them all
        assert told == {"processes": 2, "wrapped": "DistributedDataParallel", "numbers": 30}


@pytest.mark.usefixtures("only_sft")
@pytest.mark.parametrize(
    ("size", "said"),
    [
        (6, "global_batch_size=6: not a multiple of 4 (per_device_train_batch_size 2 on 2 proc"),
        pytest.param(2, "global_batch_size=2: not a multiple of 4", marks=pytest.mark.slow),
    ],
)
def test_a_batch_that_does_not_divide_ends_both_processes_in_one_sentence(
    size: int, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    runs_on_two.fill(folder)
    before = snapshot(folder)
    words = runs_on_two.words_of("sft", True, global_batch_size=size)
    launch = ["recipes.cli", *words, "--accelerate_config", "cpu", "--num_processes", "2"]
    done = on_two(folder, launch)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("error:") == 1
    assert f"rlhf sft: error: {said}" in done.stderr
    assert snapshot(folder) == before


@pytest.mark.usefixtures("only_sft")
def test_a_folder_that_another_run_has_ends_both_processes_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    runs_on_two.fill(folder)
    (folder / "sft").mkdir()
    acquire(folder / "sft")  # as a run that was started a moment before
    words = runs_on_two.words_of("sft", True)
    launch = ["recipes.cli", *words, "--accelerate_config", "cpu", "--num_processes", "2"]
    done = on_two(folder, launch)
    release(folder / "sft")
    assert done.returncode == 2
    assert done.stdout == ""
    (error,) = (line for line in done.stderr.splitlines() if "error" in line.lower())
    assert error.startswith(
        f"rlhf sft: error: output_dir=sft is in use by process {os.getpid()} on "
    )
    assert "Traceback" not in done.stderr
    assert not any((folder / "sft").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("only_sft")
def test_one_process_cannot_read_the_optimizer_of_fsdps_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "two"
    runs_on_two.fill(folder, use_cpu=False)
    done = runs_on_two.on_two(folder, "fsdp2")
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = folder / "sft/checkpoint-2"
    assert (checkpoint / "optimizer_0").is_dir()
    assert not (checkpoint / "optimizer.pt").exists()
    words = [*runs_on_two.words_of("sft", False, "copy"), "--resume"]
    with runs_on_two.inside(folder):
        cut(Path("sft"), Path("copy"))
        with pytest.raises(UserError, match="is of fsdp2 with 2 processes, not single with 1"):
            runs_on_two.make(words)
        monkeypatch.setattr("recipes.lib.recipe.guard.refuse_launch", lambda _: None)
        with pytest.raises(ValueError, match="only supported when using PyTorch FSDP"):
            runs_on_two.make(words)


@pytest.mark.slow
@pytest.mark.usefixtures("only_sft")
@pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed")
def test_a_run_of_zero_loses_its_optimizer_without_a_word_where_deepspeed_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two"
    runs_on_two.fill(folder, use_cpu=False)
    done = runs_on_two.on_two(folder, "zero2")
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr("recipes.lib.recipe.guard.refuse_launch", lambda _: None)
    with runs_on_two.inside(folder):
        cut(Path("sft"), Path("copy"))
        before = runs_on_two.weights(Path("copy/checkpoint-2"))
        capfd.readouterr()
        runs_on_two.make([*runs_on_two.words_of("sft", False, "copy"), "--resume"])
        said = "".join(capfd.readouterr())
        whole, resumed = (runs_on_two.weights(Path(name) / "final") for name in ("sft", "copy"))
    assert "optimizer" not in said
    assert "the run starts at the beginning" not in said
    # The step behind the checkpoint is the first one of a new AdamW: by the learning rate, whatever
    # the gradient is. That of the unbroken run is not, and ends elsewhere.
    stepped = {key: (tensor - before[key]).abs().max().item() for key, tensor in resumed.items()}
    assert all(step == pytest.approx(0.01, rel=1e-3) for step in stepped.values())
    assert max((whole[key] - tensor).abs().max().item() for key, tensor in resumed.items()) > 0.01
