"""A signal ends a run with a checkpoint, and the resumed run is the unbroken one, bit for bit."""

import json
import os
import shlex
import shutil
import signal
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
from recipes.lib.ppo.samplers import Sampler
from recipes.lib.recipe.main import launch
from recipes.lib.runs.checkpoints import checkpoint_fault, list_checkpoints
from recipes.lib.runs.files import read_jsonl
from recipes.lib.trainers import progress
from tests.helpers.stopped_runs import (
    COMMON,
    assert_same_runs,
    furnish,
    kill_at,
    train,
    watch_steps,
)
from tests.helpers.tiny_runs import LORA, flags


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return furnish(tmp_path, tiny_model, tiny_tokenizer)


DROPOUT = LORA | {"lora_dropout": 0.3, "disable_dropout": False}
SAVED = {"save_strategy": "steps", "save_steps": 3}
EPOCHS = {"eval_strategy": "epoch", "logging_strategy": "epoch"}
INNER = {"num_ppo_epochs": 2, "total_episodes": 24}  # step 6 is between two inner epochs
CASES = [  # recipe, steps, event, signal, settings
    ("sft", 4, "on_step_begin", signal.SIGTERM, LORA | {"lora_dropout": 0.3}),
    ("sft", 5, "on_substep_end", signal.SIGUSR1, {}),
    ("sft", 8, "on_prediction_step", signal.SIGINT, {}),  # in the middle of an evaluation
    ("sft", 3, "on_step_end", signal.SIGTERM, EPOCHS),  # what the epoch logs at its end is kept
    ("sft", 3, "on_prediction_step", signal.SIGTERM, EPOCHS | SAVED),  # behind a checkpoint
    ("reward", 5, "on_substep_end", signal.SIGTERM, {}),
    ("reward", 4, "on_step_end", signal.SIGTERM, LORA | {"lora_dropout": 0.3}),
    ("dpo", 7, "on_substep_end", signal.SIGTERM, {}),
    ("dpo", 4, "on_prediction_step", signal.SIGTERM, {}),
    ("kto", 5, "on_substep_end", signal.SIGTERM, {}),
    ("ppo", 5, "on_step_begin", signal.SIGTERM, {"critic": "head"}),
    ("ppo", 4, "on_step_begin", signal.SIGTERM, {}),  # a rollout was made for this step
    ("ppo", 7, "on_step_end", signal.SIGUSR1, {"critic": "model"}),
    ("ppo", 6, "on_step_begin", signal.SIGTERM, INNER | LORA | {"critic": "model"}),
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
    assert [(s, checkpoint_fault(path)) for s, path in list_checkpoints(folder / "broken")] == [
        (step, None)
    ]
    begun = watch_steps(monkeypatch)
    train(recipe, folder, "broken", **more, resume=True)
    assert_same_runs(folder / "whole", folder / "broken")
    assert min(begun, default=step) == step  # a run that began anew would end alike


@pytest.mark.parametrize("left", [10, 5])  # step of the checkpoint that a killed run has
@pytest.mark.parametrize("recipe", ["sft", "ppo"])
def test_a_run_goes_on_from_its_checkpoint_and_no_step_is_made_again(
    monkeypatch: pytest.MonkeyPatch, folder: Path, recipe: str, left: int
) -> None:
    more = {"save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "constant"}
    train(recipe, folder, "whole", **more)
    shutil.copytree(folder / "whole", folder / "cut")
    for name in ("lineage.json", "summary.json", "report.html"):
        (folder / "cut" / name).unlink()
    shutil.rmtree(folder / "cut/final")
    for step, path in list_checkpoints(folder / "cut"):
        if step > left:
            shutil.rmtree(path)
    assert list_checkpoints(folder / "cut")[-1][0] == left
    begun = watch_steps(monkeypatch)
    train(recipe, folder, "cut", **more, resume=True)
    assert_same_runs(folder / "whole", folder / "cut")
    assert begun == list(range(left, 10))


def test_an_evaluation_after_the_last_step_is_made_up_for_and_decides_about_the_best(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    best = {
        "max_steps": 9,  # at the end of an epoch
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    train("sft", folder, "whole", **best)
    with monkeypatch.context() as patch:
        kill_at(patch, 9, "on_prediction_step", signal.SIGTERM)
        with pytest.raises(Stopped):
            train("sft", folder, "broken", **best)
    train("sft", folder, "broken", **best, resume=True)
    assert_same_runs(folder / "whole", folder / "broken")


def test_a_rollout_in_progress_is_abandoned_and_redone(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    plain = {"eval_strategy": "no"}
    train("ppo", folder, "whole", **plain)
    sampled = Sampler.completions
    calls: list[int] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            torch.rand(3)  # as a sampler with noise of its own would
            os.kill(os.getpid(), signal.SIGTERM)
        return sampled(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "completions", interrupted)
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
    assert list_checkpoints(folder / "run") == []
    train("sft", folder, "run", resume=True)


def test_the_command_says_how_to_go_on_and_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_at(monkeypatch, 2, "on_step_begin", signal.SIGTERM)
    monkeypatch.chdir(folder)
    values = COMMON | {"dataset_name": "sft.jsonl", "model_name_or_path": "tiny"}
    assert launch("sft", flags(values)) == 75
    said = capsys.readouterr().err.splitlines()
    ending = "run/checkpoint-2 holds where it stands; go on with --resume."
    assert said[-2] == f"rlhf sft: stopped by SIGTERM; {ending}"
    assert shlex.split(said[-1]) == ["rlhf", "sft", *flags(values), "--resume"]


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
    assert list_checkpoints(folder / "run") == []
