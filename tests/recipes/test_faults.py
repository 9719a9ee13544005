"""What goes wrong in the middle of a run costs nothing: the disk, a reward, gradients, a move."""

import math
import os
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from recipes.lib.distributed.signals import Stopped
from recipes.lib.errors import UserError
from recipes.lib.rewards import retries
from recipes.lib.runs.checkpoints import list_checkpoints, newest_good
from recipes.lib.runs.folder import Run
from recipes.lib.trainers import progress
from tests.helpers.small_disk import NoMountError, small_disk
from tests.helpers.stopped_runs import REWARD, assert_same_runs, furnish, kill_at, rows, train


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return furnish(tmp_path, tiny_model, tiny_tokenizer)


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    try:
        with small_disk(folder) as mounted:
            yield mounted
    except NoMountError:
        pytest.skip("a file system cannot be mounted here")


@pytest.mark.parametrize("recipe", ["sft", "ppo", "grpo"])
def test_a_step_without_finite_gradients_is_skipped_counted_and_its_batch_kept(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    recipe: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: dict[int, torch.Tensor] = {}

    class Poison(progress.RunCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            weight = next(p for p in given["model"].parameters() if p.requires_grad)
            seen[state.global_step] = weight.detach().clone()
            if state.global_step in {1, 2}:
                handle = weight.register_hook(lambda gradient: gradient * math.nan)
                self.handle = handle

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in {2, 3}:
                self.handle.remove()

    with monkeypatch.context() as patch:
        patch.setattr(progress, "RunCallback", Poison)
        train(recipe, folder, "run", logging_steps=1)
    assert torch.equal(seen[1], seen[2])  # not even weight decay moved it
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[3], seen[4])
    said = capsys.readouterr().err
    assert "step 2: gradients are not finite, so it is skipped; its batch is in " in said
    kept = load_file(folder / "run/faults/step-2-process-0.safetensors")
    name = "0.input_ids" if recipe == "sft" else "0.completion_ids"
    assert kept[name].shape[0] == (2 if recipe == "ppo" else 4)
    logged = [row for row in rows(folder / "run/metrics.jsonl") if "loss" in row]
    assert [row.get("skipped_steps", 0) for row in logged[:4]] == [0, 1, 2, 2]


def test_three_in_a_row_stop_the_run_which_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    train("ppo", folder, "whole")

    class Poison(progress.RunCallback):
        begins = 4

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            weight = next(p for p in given["model"].parameters() if p.requires_grad)
            if state.global_step == self.begins:
                weight.register_hook(lambda gradient: gradient * math.inf)

    said = "3 steps in a row were not finite, .*faults/step-7-process-0.safetensors; start anew"
    with monkeypatch.context() as patch:
        patch.setattr(progress, "RunCallback", Poison)
        with pytest.raises(UserError, match=said + ".*checkpoint-6 holds where it stands"):
            train("ppo", folder, "broken")
    Poison.begins = 6  # it has not gone: the run is not taken as finished, skipping all steps
    with monkeypatch.context() as patch:
        patch.setattr(progress, "RunCallback", Poison)
        with pytest.raises(UserError, match="3 steps in a row were not finite"):
            train("ppo", folder, "broken", resume=True)
    train("ppo", folder, "broken", resume=True)


def test_a_reward_that_fails_in_the_middle_costs_no_step(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(retries, "BACKOFF", 0.01)
    plain = {"eval_strategy": "no", "reward_retries": 1}
    train("ppo", folder, "whole", **plain)
    (folder / "rewards.py").write_text(
        REWARD.replace("    return", "    calls.append(1)\n    if len(calls) > 2:\n"
        "        raise ConnectionResetError('the endpoint is gone')\n    return") + "calls = []\n"
    )  # fmt: skip
    said = (
        "ends failed 2 times, .*the endpoint is gone; .*checkpoint-4 holds where it stands, --res"
    )
    with pytest.raises(UserError, match=said):
        train("ppo", folder, "broken", **plain)
    (folder / "rewards.py").write_text(REWARD)
    train("ppo", folder, "broken", **plain, resume=True)
    assert_same_runs(folder / "whole", folder / "broken")


@pytest.mark.parametrize(
    ("recipe", "calls"),
    [("ppo", "6"), pytest.param("grpo", "8", marks=pytest.mark.slow)],  # the same code
)
def test_a_reward_that_hangs_is_killed_and_the_run_is_the_same(
    folder: Path, recipe: str, calls: str
) -> None:
    plain = {"eval_strategy": "no"}
    train(recipe, folder, "whole", **plain)
    (folder / "rewards.py").write_text(
        REWARD.replace("    return", "    if turn() == 2:\n        time.sleep(60)\n    return")
        + "import time\nfrom pathlib import Path\nCOUNT = Path(__file__).with_name('count')\n"
        "def turn():\n    number = int(COUNT.read_text()) + 1 if COUNT.exists() else 1\n"
        "    COUNT.write_text(str(number))\n    return number\n"
    )
    train(recipe, folder, "run", **plain, reward_timeout=5.0)
    assert (folder / "count").read_text() == calls  # of each rollout, and one asked about twice
    assert_same_runs(folder / "whole", folder / "run")


def test_a_run_that_was_moved_goes_on_and_finds_its_best_checkpoint(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # so that it is an early one
        "save_strategy": "steps",
        "save_steps": 4,
        "save_total_limit": 1,
    }
    train("sft", folder, "whole", **best)
    with monkeypatch.context() as patch:
        kill_at(patch, 9, "on_step_begin", signal.SIGTERM)
        with pytest.raises(Stopped):
            train("sft", folder, "broken", **best)
    assert [step for step, _ in list_checkpoints(folder / "broken")] == [
        4,
        9,
    ]  # the best and the newest
    (folder / "elsewhere").mkdir()
    (folder / "broken").rename(folder / "elsewhere/moved")
    for number, path in list_checkpoints(folder / "elsewhere/moved"):
        os.utime(path, (10.0**9 - number, 10.0**9 - number))  # as if the clock had gone back
    train("sft", folder, "elsewhere/moved", **best, resume=True)
    assert_same_runs(folder / "whole", folder / "elsewhere/moved")
    kept = load_file(folder / "elsewhere/moved/checkpoint-4/model.safetensors")
    final = load_file(folder / "elsewhere/moved/final/model.safetensors")
    assert all(torch.equal(final[name], weight) for name, weight in kept.items())


@pytest.mark.parametrize(
    "case",
    [
        ("on_step_end", 6, 0, "on_log"),
        ("on_log", 6, 0, "append_samples"),
        ("on_step_end", 7, 40_000, "_save_checkpoint"),
        ("on_train_end", 10, 0, "save_final"),
    ],
    ids=["metrics", "samples", "checkpoint", "final"],
)
def test_a_disk_that_fills_up_costs_no_checkpoint_and_the_run_goes_on_with_room(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    disk: Path,
    case: tuple[str, int, int, str],
) -> None:
    event, step, room, writes = case
    more = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1, "logging_steps": 1}
    # Samples of a log fill more than a page of the disk; without them what fills up are metrics.
    more |= {"max_completion_length": 32, "log_completions": writes != "on_log"}
    train("ppo", folder, "whole", **more)

    class Filling(progress.RunCallback):
        def _fill(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            getattr(super(), event)(args, state, control, **given)
            if state.global_step == step:
                free = os.statvfs(disk)
                (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - room))

    setattr(Filling, event, Filling._fill)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "RunCallback", Filling)
        said = "the disk is full or read-only; make room and go on"
        with pytest.raises(UserError, match=said) as refused:
            train("ppo", folder, "disk/run", **more)
    cause = refused.value.__cause__
    assert cause is not None
    assert writes in {frame.name for frame in traceback.extract_tb(cause.__traceback__)}
    good, told = newest_good(disk / "run")
    assert (good, told) == (disk / f"run/checkpoint-{10 if step == 10 else 4}", [])
    (disk / "filler").unlink()
    train("ppo", folder, "disk/run", **more, resume=True)
    assert_same_runs(folder / "whole", disk / "run")


def test_a_disk_that_is_full_at_the_report_costs_the_report_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch, folder: Path, disk: Path
) -> None:
    plain = {"eval_strategy": "no"}  # and without any checkpoint to go on from
    write = Run.write_summary

    def filling(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        written = write(run, summary)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(free - 20_000))
        return written

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_summary", filling)
        with pytest.raises(UserError, match="the disk is full or read-only; make room and go on"):
            train("sft", folder, "disk/run", **plain)
    before = (disk / "run/final/model.safetensors").read_bytes()
    summary = (disk / "run/summary.json").read_text()
    left = {path.name for path in (disk / "run").iterdir()}
    assert not {name for name in left if "report" in name or name.endswith(".tmp")}
    (disk / "filler").unlink()
    train("sft", folder, "disk/run", **plain, resume=True)
    assert "<html" in (disk / "run/report.html").read_text()
    assert (disk / "run/final/model.safetensors").read_bytes() == before  # nothing was trained
    assert (disk / "run/summary.json").read_text() == summary
    with pytest.raises(UserError, match="holds a finished run: nothing is left to resume"):
        train("sft", folder, "disk/run", **plain, resume=True)
