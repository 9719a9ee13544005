"""Two real processes of the recipe: one dies, or both are told to stop; the run goes on later."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.recipe.main import launch
from recipes.lib.runs.checkpoints import (
    checkpoint_fault,
    list_checkpoints,
    read_manifest,
    seal,
)
from recipes.lib.runs.files import read_jsonl
from tests.helpers.stopped_runs import assert_same_runs
from tests.helpers.tiny_runs import flags, snapshot, write

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 300.0  # seconds; what would be waited for in vain takes longer
REWARD = """
import os, signal, time
from pathlib import Path
HERE = Path(__file__).parent
calls = []

def ends(completion_ids, **_):
    calls.append(1)
    if len(calls) == 2:
        for name, act in ACTS.items():
            if (HERE / f"{name}.now").exists():
                act()
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]

def die():
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

def wait():  # too long for anyone who waits for it, but for one process if that is the other's
    rank = os.environ.get("RANK", "0")
    (HERE / ("waiting" + rank)).write_text(str(os.getpid()))
    if rank == "1" or not (HERE / "alone.now").exists():
        time.sleep(1000.0)

def fail():
    if os.environ["RANK"] == "1":
        raise ValueError("no number for this one")

ACTS = {"die": die, "wait": wait, "fail": fail}
"""
PPO: dict[str, Any] = {
    "total_episodes": 64,
    "rollout_batch_size": 16,
    "num_ppo_epochs": 1,
    "num_mini_batches": 2,
    "per_device_train_batch_size": 4,
    "max_completion_length": 6,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "learning_rate": 1e-2,
    "log_completions": True,
}


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write(tmp_path / "rows.jsonl", [{"prompt": f"the {w}"} for w in ("cat", "dog", "sun", "rain")])
    (tmp_path / "rewards.py").write_text(REWARD)
    return tmp_path


GRPO: dict[str, Any] = {
    "max_steps": 6,
    "num_generations": 4,
    "steps_per_generation": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "log_completions": True,
}


def words(name: str, *more: str, recipe: str = "ppo", **values: Any) -> list[str]:
    values |= {"dataset_name": "rows.jsonl", "reward_funcs": ["rewards.py:ends"]}
    own = PPO if recipe == "ppo" else GRPO
    return [*flags(own | values | {"output_dir": name}), *more]


def start(
    folder: Path, name: str, *more: str, recipe: str = "ppo", **values: Any
) -> subprocess.Popen[str]:
    of_ours = ["recipes.cli", recipe, "--accelerate_config", "cpu", "--num_processes", "2"]
    return popen(folder, [*of_ours, *words(name, *more, recipe=recipe, **values)])


def start_by_accelerate(folder: Path, name: str) -> subprocess.Popen[str]:
    config = str(ROOT / "configs/accelerate/cpu.yaml")
    launcher = ["accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    return popen(folder, [*launcher, "-m", "recipes.ppo", *words(name)])


def popen(folder: Path, module: list[str], **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def test_one_of_two_dies_then_both_are_stopped_and_the_run_goes_on(folder: Path) -> None:
    whole = start_by_accelerate(folder, "whole")
    said = whole.communicate(timeout=PATIENCE)[0]
    assert whole.returncode == 0, said[-3000:]

    (folder / "die.now").touch()
    broken = start(folder, "run")
    said = broken.communicate(timeout=PATIENCE)[0]  # the other one does not wait for it for ever
    assert broken.returncode == 128 + 9
    assert "rlhf ppo: process 1 was killed by SIGKILL." in said
    assert newest(folder) == (2, None)
    (folder / "die.now").unlink()

    # Both are told to stop, in the middle of a rollout; then one alone, and the other one follows.
    (folder / "wait.now").touch()
    said = stop_in_a_rollout(folder, lambda launcher, _: launcher.send_signal(signal.SIGTERM))
    assert "run/checkpoint-4 holds where it stands; go on with --resume." in said
    assert said.count("SIGTERM: saving where it stands") == 1
    assert newest(folder) == (4, None)
    manifest = read_manifest(folder / "run/checkpoint-4")
    assert manifest["launch"] == {"kind": "ddp", "num_processes": 2}
    (folder / "alone.now").touch()
    said = stop_in_a_rollout(folder, lambda _, worker: os.kill(worker, signal.SIGUSR1))
    assert "stopped by a signal to another process; run/checkpoint-6 holds where it st" in said
    assert newest(folder) == (6, None)
    (folder / "wait.now").unlink()

    shutil.copytree(folder / "run", folder / "alone")
    resumed = start(folder, "run", "--resume")
    said = resumed.communicate(timeout=PATIENCE)[0]
    assert resumed.returncode == 0, said[-3000:]
    expected = load_file(folder / "whole/final/model.safetensors")
    got = load_file(folder / "run/final/model.safetensors")
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())
    with pytest.MonkeyPatch.context() as patch:  # and on one process, up to rounding
        patch.chdir(folder)
        assert launch("ppo", words("alone", "--resume")) == 0  # DDP's is that of one process
    got = load_file(folder / "alone/final/model.safetensors")
    assert all(torch.allclose(got[name], w, atol=1e-5) for name, w in expected.items())
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert timeless(folder / "run" / name) == timeless(folder / "whole" / name)


@pytest.mark.slow  # PPO's are left the same way above
def test_rewards_of_grpo_are_left_by_both_and_the_run_goes_on(folder: Path) -> None:
    whole = start(folder, "whole", recipe="grpo")
    said = whole.communicate(timeout=PATIENCE)[0]
    assert whole.returncode == 0, said[-3000:]
    for name in ("wait.now", "alone.now"):
        (folder / name).touch()
    said = stop_in_a_rollout(folder, lambda _, worker: os.kill(worker, signal.SIGTERM), "grpo")
    assert "run/checkpoint-2 holds where it stands; go on with --resume." in said
    (folder / "wait.now").unlink()
    resumed = start(folder, "run", "--resume", recipe="grpo")
    said = resumed.communicate(timeout=PATIENCE)[0]
    assert resumed.returncode == 0, said[-3000:]
    assert_same_runs(folder / "whole", folder / "run")


def stop_in_a_rollout(
    folder: Path, stop: Callable[[subprocess.Popen[str], int], None], recipe: str = "ppo"
) -> str:
    """Go on with a run, stop it while rewards are waited for, and return what it said."""
    places = [folder / f"waiting{rank}" for rank in (0, 1)]
    for place in places:
        place.unlink(missing_ok=True)
    broken = start(folder, "run", "--resume", recipe=recipe)
    while not all(place.exists() and place.read_text() for place in places):
        assert broken.poll() is None
        time.sleep(0.05)
    stop(broken, int(places[1].read_text()))
    said = broken.communicate(timeout=PATIENCE)[0]
    assert broken.returncode != 0
    return said


@pytest.mark.parametrize("config", [pytest.param("single_gpu", marks=pytest.mark.slow), "cpu"])
def test_a_ctrl_c_that_the_terminal_sends_to_all_counts_once(folder: Path, config: str) -> None:
    (folder / "wait.now").touch()
    processes = 2 if config == "cpu" else 1
    values = {"total_episodes": 32, "num_mini_batches": 1}
    broken = popen(
        folder,
        ["recipes.cli", "ppo", "--accelerate_config", config, *words("run", **values)],
        start_new_session=True,
        # As nohup has it; a shell may have ignored SIGINT of what runs in its background.
        preexec_fn=lambda: (
            signal.signal(signal.SIGHUP, signal.SIG_IGN),
            signal.signal(signal.SIGINT, signal.SIG_DFL),
        ),
    )
    while not all((folder / f"waiting{rank}").exists() for rank in range(processes)):
        assert broken.poll() is None, broken.communicate()
        time.sleep(0.05)
    os.killpg(broken.pid, signal.SIGHUP)
    time.sleep(0.5)
    os.killpg(broken.pid, signal.SIGINT)
    said = broken.communicate(timeout=PATIENCE)[0]
    assert broken.returncode == 75, said[-2000:]
    assert said.count("SIGINT: saving where it stands") == 1
    assert newest(folder) == (1, None)


def test_a_reward_that_fails_on_one_process_ends_both_with_a_checkpoint(folder: Path) -> None:
    (folder / "fail.now").touch()
    broken = start(folder, "run", save_strategy="no")
    said = broken.communicate(timeout=PATIENCE)[0]
    assert broken.returncode == 2
    assert "ValueError: no number for this one" in said
    assert "run/checkpoint-2 holds where it stands, --resume goes on." in said
    assert newest(folder) == (2, None)


def test_a_mistake_that_one_process_sees_is_told_once_and_ends_both(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/config.yaml").write_text("{}")
    before = snapshot(folder)
    refused = start(folder, "run")  # the first process looks at the folder, the second does not
    said = refused.communicate(timeout=PATIENCE)[0]
    assert refused.returncode == 2
    assert said.count("error:") == 1
    assert "output_dir=run holds a run" in said
    assert snapshot(folder) == before


def test_a_damaged_checkpoint_is_told_once_and_ends_both(folder: Path) -> None:
    checkpoint = folder / "old/checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(b"x")
    seal(checkpoint, 2, launch={"kind": "ddp", "num_processes": 2})
    (checkpoint / "optimizer.pt").write_bytes(b"y")
    refused = start(folder, "run", resume_from_checkpoint="old/checkpoint-2")
    said = refused.communicate(timeout=PATIENCE)[0]
    assert refused.returncode == 2
    assert said.count("error:") == said.count("optimizer.pt was altered") == 1
    assert not (folder / "run").exists()


def newest(folder: Path) -> tuple[int, str | None]:
    step, checkpoint = list_checkpoints(folder / "run")[-1]
    return step, checkpoint_fault(checkpoint)


def timeless(path: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "seconds" and "time/" not in k}
        for row in read_jsonl(path)
    ]
