"""A signal ends a run with a checkpoint, and the resumed run is the unbroken one, bit for bit."""

import json
import math
import os
import shutil
import signal
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

from recipes import dpo, grpo, kto, ppo, reward, rloo, sft
from recipes.lib import patient_rewards, progress
from recipes.lib.arguments import parse
from recipes.lib.checkpoints import fault, newest_good, numbered
from recipes.lib.errors import UserError
from recipes.lib.ppo import collect
from recipes.lib.runs import read_jsonl
from recipes.lib.stopping import Stopped
from tests.small_disk import NoMountError, small_disk
from tests.tiny_runs import FAST, LORA, write

RECIPES = {"sft": sft, "reward": reward, "dpo": dpo, "kto": kto, "ppo": ppo}
RECIPES |= {"rloo": rloo, "grpo": grpo}
SAMPLING = ("ppo", "rloo", "grpo")
PAIRS = [
    {"prompt": f"the {subject}", "chosen": f" {verb} happy .", "rejected": f" {verb} sad today ."}
    for subject in ("cat", "dog", "bird", "child", "sun", "moon", "rain", "tree")
    for verb in ("was", "sat", "ran", "is")
]
# Between two logs; accumulation; random numbers in every step; in a later pass over the rows.
COMMON = FAST | {
    "logging_steps": 3,
    "max_steps": 10,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "test_fraction": 0.25,
    "eval_strategy": "steps",
    "eval_steps": 4,
}
ROLLOUTS = {
    "total_episodes": 40,
    "rollout_batch_size": 8,
    "num_mini_batches": 2,
    "num_ppo_epochs": 1,
    "per_device_train_batch_size": 2,
    "max_completion_length": 6,
    "target_kl": 1.0,
    "normalize_rewards": True,
    "log_completions": True,
}
GENERATIONS = {
    "num_generations": 4,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "per_device_train_batch_size": 4,
    "max_steps": 26,
    "beta": 0.1,
    "log_completions": True,
    "eval_strategy": "no",
}
REWARD = """
def ends(completion_ids, **_):
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]
"""


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    write(tmp_path / "pairs.jsonl", PAIRS)
    sides = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    write(tmp_path / "sft.jsonl", sides)
    write(tmp_path / "ppo.jsonl", [{"prompt": row["prompt"]} for row in PAIRS])
    (tmp_path / "rewards.py").write_text(REWARD)
    return tmp_path


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    try:
        with small_disk(folder) as mounted:
            yield mounted
    except NoMountError:
        pytest.skip("a file system cannot be mounted here")


def train(recipe: str, folder: Path, name: str, **more: Any) -> None:
    data = {"sft": "sft"}.get(recipe, "ppo" if recipe in SAMPLING else "pairs")
    values = COMMON | {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / f"{data}.jsonl"),
        "output_dir": str(folder / name),
    }
    if recipe in SAMPLING:
        values |= {"reward_funcs": [f"{folder / 'rewards.py'}:ends"], "max_completion_length": 6}
    if recipe in ("rloo", "grpo"):  # two generations in a pass over the prompts
        values |= GENERATIONS
    if recipe == "ppo":
        values |= ROLLOUTS
        del values["gradient_accumulation_steps"], values["max_steps"]  # they follow
    RECIPES[recipe].run(parse(recipe, [], values | more))


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, event: str, number: int) -> None:
    """Send this process a signal, once, at an event after so many steps."""
    sent: list[int] = []

    class Killing(progress.RunCallback):
        def _send(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step and not sent:
                sent.append(number)
                os.kill(os.getpid(), number)

    setattr(Killing, event, Killing._send)
    monkeypatch.setattr(progress, "RunCallback", Killing)


def rows(path: Path) -> list[dict[str, Any]]:
    """What was logged, without times."""
    timeless = []
    for row in read_jsonl(path):
        kept = {k: v for k, v in row.items() if k != "seconds" and "time/" not in k}
        times = ("runtime", "_second", "step_time")
        timeless.append({k: v for k, v in kept.items() if not k.endswith(times)})
    return timeless


def assert_same_runs(one: Path, other: Path) -> None:
    expected = next(one.glob("final/*.safetensors"))
    got = load_file(other / "final" / expected.name)
    assert all(torch.equal(got[n], w) for n, w in load_file(expected).items())
    assert rows(one / "metrics.jsonl") == rows(other / "metrics.jsonl") != []
    if (one / "samples.jsonl").exists():
        assert read_jsonl(one / "samples.jsonl") == read_jsonl(other / "samples.jsonl")


DROPOUT = LORA | {"lora_dropout": 0.3, "disable_dropout": False}
CASES = [  # recipe, steps, event, signal, settings
    ("sft", 4, "on_step_begin", signal.SIGTERM, LORA | {"lora_dropout": 0.3}),
    ("sft", 5, "on_substep_end", signal.SIGUSR1, {}),
    ("sft", 8, "on_prediction_step", signal.SIGINT, {}),  # in the middle of an evaluation
    ("reward", 5, "on_substep_end", signal.SIGTERM, {}),
    ("reward", 4, "on_step_end", signal.SIGTERM, LORA | {"lora_dropout": 0.3}),
    ("dpo", 7, "on_substep_end", signal.SIGTERM, {}),
    ("dpo", 4, "on_prediction_step", signal.SIGTERM, {}),
    ("kto", 5, "on_substep_end", signal.SIGTERM, {}),
    ("ppo", 5, "on_step_begin", signal.SIGTERM, {"critic": "head"}),
    ("ppo", 7, "on_step_end", signal.SIGUSR1, {"critic": "model"}),
    ("ppo", 3, "on_substep_end", signal.SIGTERM, {"critic": "adapter"} | DROPOUT),
    ("rloo", 3, "on_substep_end", signal.SIGTERM, {}),  # in the middle of a generation
    ("rloo", 22, "on_step_end", signal.SIGTERM, {}),  # in the second pass over the prompts
    ("grpo", 20, "on_substep_end", signal.SIGTERM, {}),  # between two generations
    ("grpo", 25, "on_step_end", signal.SIGTERM, LORA | {"eval_strategy": "steps"}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_a_run_that_a_signal_ended_goes_on_as_if_nothing_had_been(
    monkeypatch: pytest.MonkeyPatch, folder: Path, case: tuple[Any, ...]
) -> None:
    recipe, step, event, number, more = case
    if more.get("critic") == "adapter":  # four micro-batches a step
        more = more | {"per_device_train_batch_size": 1}
    train(recipe, folder, "whole", **more)
    with monkeypatch.context() as patch:
        kill_at(patch, step, event, number)
        said = f"stopped by {signal.Signals(number).name}; .*checkpoint-{step} holds"
        with pytest.raises(Stopped, match=said):
            train(recipe, folder, "broken", **more)
    assert [(s, fault(path)) for s, path in numbered(folder / "broken")] == [(step, None)]
    train(recipe, folder, "broken", **more, resume=True)
    assert_same_runs(folder / "whole", folder / "broken")


@pytest.mark.parametrize("recipe", ["sft", "ppo"])
def test_from_the_checkpoint_of_the_last_step_no_further_step_is_made(
    folder: Path, recipe: str
) -> None:
    more = {"save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "constant"}
    train(recipe, folder, "whole", **more)
    shutil.copytree(folder / "whole", folder / "cut")
    for name in ("lineage.json", "summary.json", "report.html"):
        (folder / "cut" / name).unlink()
    shutil.rmtree(folder / "cut/final")
    assert numbered(folder / "cut")[-1][0] == 10
    train(recipe, folder, "cut", **more, resume=True)
    assert_same_runs(folder / "whole", folder / "cut")


def test_a_rollout_in_progress_is_abandoned_and_redone(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    plain = {"eval_strategy": "no"}
    train("ppo", folder, "whole", **plain)
    sampled = collect.sample
    calls: list[int] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            torch.rand(3)  # as a sampler with noise of its own would
            os.kill(os.getpid(), signal.SIGTERM)
        return sampled(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(collect, "sample", interrupted)
        with pytest.raises(Stopped, match="checkpoint-4 holds where it stands"):
            train("ppo", folder, "broken", **plain)
    assert json.loads((folder / "broken/checkpoint-4/stream.json").read_text())["in_hand"] is False
    train("ppo", folder, "broken", **plain, resume=True)
    assert_same_runs(folder / "whole", folder / "broken")


def test_with_another_micro_batch_the_same_episodes_make_the_same_updates(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    train("ppo", folder, "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, 5, "on_step_begin", signal.SIGTERM)
        with pytest.raises(Stopped):
            train("ppo", folder, "broken")
    train("ppo", folder, "broken", per_device_train_batch_size=4, resume=True)
    expected = load_file(folder / "whole/final/model.safetensors")
    got = load_file(folder / "broken/final/model.safetensors")
    assert all(torch.allclose(got[name], w, atol=1e-5) for name, w in expected.items())
    said = [
        [(row["episode"], row["completion"], row["score"]) for row in read_jsonl(path)]
        for path in (folder / "whole/samples.jsonl", folder / "broken/samples.jsonl")
    ]
    assert said[0] == said[1]


def test_before_the_first_step_there_is_nothing_to_save(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, 0, "on_train_begin", signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM; no step was made since the start"):
            train("sft", folder, "run")
    assert numbered(folder / "run") == []
    train("sft", folder, "run", resume=True)


def test_handlers_are_those_of_before_when_training_is_over(folder: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    train("sft", folder, "run")
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]


def test_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    class Twice(progress.RunCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress, "RunCallback", Twice)
    with pytest.raises(KeyboardInterrupt):
        train("sft", folder, "run")
    assert numbered(folder / "run") == []


@pytest.mark.parametrize("recipe", ["sft", "ppo"])
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
    assert kept[name].shape[0] == (4 if recipe == "sft" else 2)
    logged = [row for row in rows(folder / "run/metrics.jsonl") if "loss" in row]
    assert [row.get("skipped_steps", 0) for row in logged[:4]] == [0, 1, 2, 2]


def test_three_in_a_row_stop_the_run_which_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    train("ppo", folder, "whole")

    class Poison(progress.RunCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            weight = next(p for p in given["model"].parameters() if p.requires_grad)
            if state.global_step == 4:
                weight.register_hook(lambda gradient: gradient * math.inf)

    said = "3 steps in a row were not finite, .*faults/step-7-process-0.safetensors; lower"
    with monkeypatch.context() as patch:
        patch.setattr(progress, "RunCallback", Poison)
        with pytest.raises(UserError, match=said + ".*checkpoint-6 holds where it stands"):
            train("ppo", folder, "broken")
    train("ppo", folder, "broken", resume=True)


def test_a_reward_that_fails_in_the_middle_costs_no_step(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(patient_rewards, "BACKOFF", 0.01)
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


def test_a_reward_that_hangs_is_killed_and_the_run_is_the_same(folder: Path) -> None:
    plain = {"eval_strategy": "no"}
    train("ppo", folder, "whole", **plain)
    (folder / "rewards.py").write_text(
        REWARD.replace("    return", "    if turn() == 2:\n        time.sleep(60)\n    return")
        + "import time\nfrom pathlib import Path\nCOUNT = Path(__file__).with_name('count')\n"
        "def turn():\n    number = int(COUNT.read_text()) + 1 if COUNT.exists() else 1\n"
        "    COUNT.write_text(str(number))\n    return number\n"
    )
    train("ppo", folder, "run", **plain, reward_timeout=2.0)
    assert (folder / "count").read_text() == "6"  # five rollouts, one of them asked about twice
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
    assert [step for step, _ in numbered(folder / "broken")] == [4, 9]  # the best and the newest
    (folder / "elsewhere").mkdir()
    (folder / "broken").rename(folder / "elsewhere/moved")
    for number, path in numbered(folder / "elsewhere/moved"):
        os.utime(path, (10.0**9 - number, 10.0**9 - number))  # as if the clock had gone back
    train("sft", folder, "elsewhere/moved", **best, resume=True)
    assert_same_runs(folder / "whole", folder / "elsewhere/moved")
    kept = load_file(folder / "elsewhere/moved/checkpoint-4/model.safetensors")
    final = load_file(folder / "elsewhere/moved/final/model.safetensors")
    assert all(torch.equal(final[name], weight) for name, weight in kept.items())


@pytest.mark.parametrize(
    ("event", "step", "room"),
    [("on_step_end", 6, 0), ("on_step_end", 7, 40_000), ("on_train_end", 10, 0)],
    ids=["metrics", "checkpoint", "final"],
)
def test_a_disk_that_fills_up_costs_no_checkpoint_and_the_run_goes_on_with_room(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    disk: Path,
    event: str,
    step: int,
    room: int,
) -> None:
    more = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1, "logging_steps": 1}
    train("ppo", folder, "whole", **more)

    class Filling(progress.RunCallback):
        def _fill(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                free = os.statvfs(disk)
                (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - room))

    setattr(Filling, event, Filling._fill)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "RunCallback", Filling)
        with pytest.raises(UserError, match="the disk is full or read-only; make room and go on"):
            train("ppo", folder, "disk/run", **more)
    good, told = newest_good(disk / "run")
    assert (good, told) == (disk / f"run/checkpoint-{10 if step == 10 else 4}", [])
    (disk / "filler").unlink()
    train("ppo", folder, "disk/run", **more, resume=True)
    assert_same_runs(folder / "whole", disk / "run")
