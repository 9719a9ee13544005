"""A PPO run that goes wrong says so: each fault is planted in a real run of a tiny model."""

import copy
import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainerCallback
from trl import ModelConfig

from recipes import ppo
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer
from tests.helpers.report_html import Page

PROMPTS = ["the cat", "the dog sat", "a bird in the tree", "rain"]


def every_fifth(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]


def constant(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [0.1] * len(completion_ids)


def one_word(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(ids.count(10)) for ids in completion_ids]


class StopAt(TrainerCallback):
    """Saves and stops at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def make(model: Any, tokenizer: Any, folder: Path, **more: Any) -> PPOTrainer:
    settings = {
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "total_episodes": 64,
        "rollout_batch_size": 32,
        "num_ppo_epochs": 2,
        "per_device_train_batch_size": 32,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
    }
    reward, stop = more.pop("reward_funcs", every_fifth), more.pop("stop", None)
    prompts = more.pop("prompts", PROMPTS)
    return PPOTrainer(
        model,
        reward,
        PPOConfig(output_dir=str(folder), **(settings | more)),
        Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        callbacks=[StopAt(stop)] if stop else None,
    )


def told(trainer: PPOTrainer) -> list[str]:
    return [warning["kind"] for warning in trainer.health.warnings]


GREEDY = {
    "critic": "model",
    "learning_rate": 2e-2,
    "num_ppo_epochs": 16,
    "kl_coef": 0.0,
    "max_approx_kl": None,
    "reward_funcs": one_word,
}
FAULTS: dict[str, dict[str, Any]] = {
    "clip_fraction": GREEDY | {"total_episodes": 96},
    "entropy_collapse": GREEDY | {"total_episodes": 416, "lr_scheduler_type": "constant"},
    "same_completions": {"temperature": 1e-4, "prompts": PROMPTS[:1]},
    "constant_reward": {"reward_funcs": constant},
    "value_loss": {"critic": "model", "critic_learning_rate": 10.0},
}
# What else has to follow from the fault, and nothing besides.
WITH_IT = {"entropy_collapse": {"clip_fraction"}, "same_completions": {"entropy_collapse"}}


# One takes half a minute.
LONG = {"entropy_collapse": pytest.mark.slow}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=LONG.get(k, ())) for k in FAULTS])
def test_a_planted_fault_is_told_once(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, capfd: Any, kind: str
) -> None:
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, **FAULTS[kind])
    trainer.train()
    assert told(trainer).count(kind) == 1
    assert set(told(trainer)) == {kind} | WITH_IT.get(kind, set())
    (warning,) = [w for w in trainer.health.warnings if w["kind"] == kind]
    assert capfd.readouterr().err.count(f"Warning: {warning['message']}\n") == 1
    check_message(warning["message"])
    logged = [row["health/warnings"] for row in trainer.state.log_history if "loss" in row]
    assert logged[-1] == len(trainer.health.warnings)


def check_message(message: str) -> None:
    """It fits on two lines of a terminal and names at least one key that exists."""
    assert len(f"Warning: {message}") <= 160
    known = {f.name for f in fields(PPOConfig)} | {f.name for f in fields(ModelConfig)}
    named = set(re.findall(r"\b(\w+_\w+|temperature|bf16|reward_funcs)\b", message))
    assert named
    assert named <= known | {"reward_funcs"}


def sample_from_the_reference(trainer: PPOTrainer) -> None:
    """The fault of a sampler that never gets the new weights."""
    sampler: Any = trainer.collector.sampler
    sampler.model = trainer.reference


def test_texts_that_another_model_sampled_are_told_by_their_negative_kl(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    more = {"learning_rate": 1e-2, "total_episodes": 320}
    right = make(copy.deepcopy(tiny_model), tiny_tokenizer, tmp_path, **more)
    right.train()
    assert told(right) == []
    wrong = make(tiny_model, tiny_tokenizer, tmp_path, **more)
    sample_from_the_reference(wrong)
    wrong.train()
    assert told(wrong) == ["negative_kl"]
    check_message(wrong.health.warnings[0]["message"])
    place = wrong.health.warnings[0]
    row = next(row for row in wrong.state.log_history if row["step"] == place["step"])
    assert row["objective/kl"] < -3 * row["objective/kl_std"] / 32**0.5
    assert row["episode"] == place["episode"]


def test_a_healthy_run_is_told_nothing(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, capfd: Any
) -> None:
    trainer = make(
        tiny_model,
        tiny_tokenizer,
        tmp_path,
        total_episodes=640,
        rollout_batch_size=64,
        learning_rate=5e-3,
        per_device_train_batch_size=64,
    )
    trainer.train()
    scores = [r["objective/scores"] for r in trainer.state.log_history if "loss" in r]
    assert scores[-1] > scores[0] + 0.3  # it learns, so there was something to watch
    assert trainer.health.warnings == []
    assert "Warning" not in capfd.readouterr().err
    assert all(r["health/warnings"] == 0 for r in trainer.state.log_history if "loss" in r)


def test_a_run_that_comes_close_to_its_known_optimum_is_told_nothing(
    shared: Path, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("exact_task", shared / "bench/exact_task.py")
    assert spec is not None
    assert spec.loader is not None
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        firsts = [3 + int(prompt.removeprefix("p")) for prompt in prompts]
        return [task.reward(p, tuple(c)) for p, c in zip(firsts, completion_ids, strict=True)]

    model, tokenizer = task.build()
    reference = copy.deepcopy(model)
    trainer = make(
        model,
        tokenizer,
        tmp_path,
        reward_funcs=reward,
        prompts=[f"p{i % task.PROMPTS}" for i in range(256)],
        total_episodes=4096,
        rollout_batch_size=256,
        num_ppo_epochs=4,
        num_mini_batches=4,
        per_device_train_batch_size=64,
        sampling_batch_size=256,
        max_completion_length=task.T,
        kl_coef=0.1,
        seed=5,
    )
    trainer.train()
    assert task.evaluate(trainer.actor_critic.policy, reference, 0.1)["optimality"] > 0.9
    assert trainer.health.warnings == []


def test_a_warning_is_not_repeated_after_a_resume(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, capfd: Any
) -> None:
    more = {"reward_funcs": constant, "total_episodes": 128}
    first = make(copy.deepcopy(tiny_model), tiny_tokenizer, tmp_path, stop=3, **more)
    first.train()
    assert told(first) == ["constant_reward"]
    assert "Warning" in capfd.readouterr().err
    second = make(tiny_model, tiny_tokenizer, tmp_path, **more)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert second.state.global_step == 8
    assert second.health.warnings == first.health.warnings
    assert "Warning" not in capfd.readouterr().err


def test_two_small_rollouts_count_together_and_one_does_not(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    trainer = make(
        tiny_model,
        tiny_tokenizer,
        tmp_path,
        reward_funcs=constant,
        rollout_batch_size=16,
        per_device_train_batch_size=16,
        total_episodes=48,
        logging_steps=1,  # the second log of a rollout takes the place of the first
    )
    trainer.train()
    assert told(trainer) == ["constant_reward"]
    assert trainer.health.warnings[0]["step"] == 3  # the first step of the second rollout


def test_a_clip_that_hides_the_reward_is_told_with_its_own_knob(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def large(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [5.0 + sum(ids) for ids in completion_ids]

    trainer = make(tiny_model, tiny_tokenizer, tmp_path, reward_funcs=large, reward_clip=1.0)
    trainer.train()
    assert told(trainer) == ["constant_reward"]
    assert "raise reward_clip" in trainer.health.warnings[0]["message"]


def test_the_warnings_of_a_run_stand_in_its_summary_report_and_closing_words(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, capfd: Any
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS * 4)
    (tmp_path / "prompts.jsonl").write_text(rows)
    (tmp_path / "reward.py").write_text(
        "def same(prompts, **_):\n    return [2.0] * len(prompts)\n"
    )
    given = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "prompts.jsonl",
        "output_dir": tmp_path / "run",
        "reward_funcs": f"{tmp_path / 'reward.py'}:same",
        "total_episodes": 64,
        "rollout_batch_size": 32,
        "per_device_train_batch_size": 32,
        "max_completion_length": 6,
        "save_strategy": "no",
        "use_cpu": True,
        "dtype": "float32",
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    assert ppo.main(flags) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    (warning,) = summary["warnings"]
    assert warning["kind"] == "constant_reward"
    assert warning["message"].startswith("all 32 scores are 2: ")
    printed = capfd.readouterr()
    assert f"Warning: {warning['message']}" in printed.err
    assert warning["message"] in printed.out
    page = Page(tmp_path / "run/report.html")
    (shown,) = page.all("li", class_="warning")
    assert warning["message"] in shown.text
    assert f"episode {warning['episode']}" in shown.text
