"""Held-out rewards along a run: their values, the best model by them, and where they part."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from recipes import grpo, ppo, rloo
from recipes.lib.errors import UserError
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer
from recipes.lib.recipe.main import parse
from recipes.lib.rewards.held_out import check_best_metric, held_out_metrics, parting
from recipes.lib.rewards.scoring import weighted_scores
from recipes.lib.runs.files import read_jsonl
from recipes.lib.trainers.progress import RunCallback
from tests.helpers import tiny
from tests.helpers.tiny_runs import FAST

LIKED, TRUE = 10, slice(3, 10)  # tokens that the reward and the held-out one pay for
PROMPTS = ["a", "b c d"]
RECIPES = {"ppo": ppo, "rloo": rloo, "grpo": grpo}


def likes(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(ids.count(LIKED)) for ids in completion_ids]


def truth(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(3 <= token < 10 for token in ids)) for ids in completion_ids]


def expected(model: Any) -> float:
    """The held-out reward over the prompts, by enumerating completions of two tokens."""
    total = 0.0
    for prompt in PROMPTS:
        ids = tiny.tokenizer()(prompt)["input_ids"]
        first = tiny.log_probs(model, ids)[-1].exp()
        second = [tiny.log_probs(model, [*ids, token])[-1].exp() for token in range(len(first))]
        goes_on = [0.0 if token == 1 else p.item() for token, p in enumerate(first)]
        total += first[TRUE].sum().item()
        total += sum(p * then[TRUE].sum().item() for p, then in zip(goes_on, second, strict=True))
    return total / len(PROMPTS)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def trained(folder: Path, stop: int = 0, resume: str | None = None, **more: Any) -> PPOTrainer:
    settings = tiny.SETTINGS | {
        "total_episodes": 192,
        "rollout_batch_size": 64,
        "per_device_train_batch_size": 32,
        "max_completion_length": 2,
        "kl_coef": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "learning_rate": 3e-2,
    }
    trainer = PPOTrainer(
        tiny.llama(),
        likes,
        PPOConfig(output_dir=str(folder), **(settings | more)),
        Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 32]),
        processing_class=tiny.tokenizer(),
        callbacks=[RunCallback(folder)] + ([StopAt(stop)] if stop else []),
        eval_reward_funcs=truth,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def evaluations(trainer: PPOTrainer) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if "eval_held_out/truth" in row]


def test_ppo_logs_what_enumeration_says_loads_the_best_and_tells_where_the_two_part(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keep = {"save_strategy": "steps", "save_steps": 4, "load_best_model_at_end": True}
    trainer = trained(tmp_path, metric_for_best_model="held_out/truth", **keep)
    rows = evaluations(trainer)
    assert [row["step"] for row in rows] == [4, 8, 12]
    truths = []
    for row in rows:
        policy = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{row['step']}")
        truths.append(expected(policy))
        error = row["eval_held_out/truth_stderr"]
        assert 0 < error < 0.1
        assert row["eval_held_out/truth"] == pytest.approx(truths[-1], abs=4 * error)
    # What the reward pays for leaves no room for what the held-out one counts.
    assert truths == sorted(truths, reverse=True)
    assert rows[-1]["eval_scores"] > rows[0]["eval_scores"] + 0.1
    assert trainer.state.best_global_step == 4
    assert expected(trainer.actor_critic.policy) == pytest.approx(truths[0], abs=1e-6)
    (warning,) = [w for w in trainer.health.warnings if w["kind"] == "held_out"]
    assert warning["step"] == 12  # the second in a row that is lower
    assert warning["episode"] == 192
    assert len(f"Warning: {warning['message']}") <= 160
    assert capfd.readouterr().err.count(f"Warning: {warning['message']}\n") == 1


def test_a_resumed_run_with_held_out_rewards_is_bit_equal(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "broken", stop=10)  # between two evaluations
    again = trained(tmp_path / "broken", resume=str(tmp_path / "broken/checkpoint-10"))
    state = whole.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.model.state_dict().items())
    assert evaluations(whole) == evaluations(again)
    assert whole.health.warnings == again.health.warnings != []
    rows = [
        [
            {k: v for k, v in row.items() if k != "seconds" and "time/" not in k}
            for row in read_jsonl(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "broken")
    ]
    assert rows[0] == rows[1]


REWARDS = """
import json

def short(completion_ids, **columns):
    return [-float(len(ids)) for ids in completion_ids]

def long(prompts, completions, completion_ids, topic, **columns):
    with open("asked.jsonl", "a") as file:
        for row in zip(prompts, completions, map(len, completion_ids), topic):
            print(json.dumps(row), file=file)
    return [None if about == "none" else float(len(ids))
            for ids, about in zip(completion_ids, topic)]

def colours(completions, **columns):
    return [sum(word in ("red", "blue") for word in text.split()) / 8 for text in completions]

def dull(completions, **columns):
    return [1 - share for share in colours(completions)]

async def constant(prompts, **columns):
    return [1.0] * len(prompts)
"""


def values_of(folder: Path, model: Any, tokenizer: Any, recipe: str) -> dict[str, Any]:
    """Keys of a run with two held-out rewards."""
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    (folder / "rewards.py").write_text(REWARDS)
    nouns = ("cat", "dog", "door", "none")
    rows = [{"prompt": f"the {noun} saw", "topic": noun} for noun in nouns]
    others = [{"prompt": f"the {noun} found", "topic": noun} for noun in nouns]
    for name, some in (("train", others), ("test", rows[1:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    own = {"num_generations": 4, "max_steps": 3}
    if recipe == "ppo":
        own = {"total_episodes": 48, "rollout_batch_size": 16, "num_ppo_epochs": 1}
    return (
        FAST
        | own
        | {
            "model_name_or_path": str(folder / "tiny"),
            "dataset_name": str(folder / "train.jsonl"),
            "test_dataset_name": str(folder / "test.jsonl"),
            "reward_funcs": [f"{folder / 'rewards.py'}:short"],
            "eval_reward_funcs": [
                f"{folder / 'rewards.py'}:{name}" for name in ("long", "constant")
            ],
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 8,
            "max_completion_length": 6,
            "learning_rate": 2e-2,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "held_out/long",
            "output_dir": str(folder / "run"),
        }
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_held_out_rewards_are_asked_at_evaluations_alone_and_choose_the_model(
    recipe: str,
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    RECIPES[recipe].run(parse(recipe, [], values_of(tmp_path, tiny_model, tiny_tokenizer, recipe)))
    rows = [
        row for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "eval_held_out/long" in row
    ]
    assert [row["step"] for row in rows] == [1, 2, 3]
    asked = read_jsonl(tmp_path / "asked.jsonl")
    each = 3 if recipe == "ppo" else 12  # TRL samples num_generations for each test prompt
    assert len(asked) == 3 * each
    for number, row in enumerate(rows):
        some = asked[number * each :][:each]
        lengths: dict[str, list[int]] = {}
        for _, _, length, topic in some:
            lengths.setdefault(topic, []).append(length)
        assert set(lengths) == {"dog", "door", "none"}
        one, other = np.mean(lengths["dog"]), np.mean(lengths["door"])  # it says None of none
        assert row["eval_held_out/long"] == pytest.approx((one + other) / 2)
        # The standard deviation of two is their difference by the root of two.
        assert row["eval_held_out/long_stderr"] == pytest.approx(abs(one - other) / 2)
        assert row["eval_held_out/constant"] == 1.0
    best = max(rows, key=lambda row: row["eval_held_out/long"])["step"]
    chosen = AutoModelForCausalLM.from_pretrained(tmp_path / "run/final").state_dict()
    of_best = AutoModelForCausalLM.from_pretrained(tmp_path / f"run/checkpoint-{best}").state_dict()
    assert all(torch.equal(chosen[name], of_best[name]) for name in chosen)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["rloo", "grpo"])
def test_trls_trainers_tell_once_where_the_two_part(
    recipe: str,
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    values = values_of(tmp_path, tiny_model, tiny_tokenizer, recipe)
    own = {
        name: [f"{tmp_path / 'rewards.py'}:{reward}"]
        for name, reward in (("reward_funcs", "colours"), ("eval_reward_funcs", "dull"))
    }
    values |= own | {"max_steps": 32, "eval_steps": 4, "save_strategy": "no", "num_generations": 8}
    values |= {"load_best_model_at_end": False, "max_completion_length": 8, "beta": 0.0}
    del values["metric_for_best_model"]
    summary = RECIPES[recipe].run(parse(recipe, [], values))
    (warning,) = summary["warnings"]
    assert warning["kind"] == "held_out"
    assert warning["episode"] == 16 * warning["step"]
    assert capfd.readouterr().err.count(warning["message"]) == 1
    assert warning["message"] in (tmp_path / "run/report.html").read_text()
    rows = [row for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "eval_reward" in row]
    for row in rows:  # the two add up to 1 on every completion
        assert row["eval_held_out/dull"] == pytest.approx(1 - row["eval_reward"], abs=1e-6)


@pytest.mark.parametrize(
    ("recipe", "change", "text"),
    [
        ("ppo", {"eval_strategy": "no", "load_best_model_at_end": False}, "nothing is evaluated"),
        ("ppo", {"metric_for_best_model": "held_out/lon"}, "no such reward; it has long, constant"),
        ("grpo", {"metric_for_best_model": "held_out/lon"}, "no such reward; it has long, const"),
        ("grpo", {"eval_reward_funcs": ["gone.py:long"]}, "reward function file gone.py is not"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_run(
    recipe: str,
    change: dict[str, Any],
    text: str,
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
) -> None:
    values = values_of(tmp_path, tiny_model, tiny_tokenizer, recipe) | change
    with pytest.raises(UserError, match=text):
        RECIPES[recipe].run(parse(recipe, [], values))
    assert not (tmp_path / "run").exists()


def test_standard_errors_are_over_prompts() -> None:
    said = [("a", [1.0]), ("a", [3.0]), ("b", [6.0]), ("b", [float("nan")])]
    found = held_out_metrics(["x"], said)
    assert found == {"held_out/x": 4.0, "held_out/x_stderr": 2.0}  # of 2 and 6
    assert held_out_metrics(["x"], said[:1]) == {"held_out/x": 1.0}
    assert held_out_metrics(["x"], said[3:]) == {}
    check_best_metric(None, [])
    check_best_metric("held_out/x", ["x"])


def rows(held: Any, scores: Any, error: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"step": n, "eval_held_out/x": h, "eval_held_out/x_stderr": error, "eval_reward": s}
        for n, (h, s) in enumerate(zip(held, scores, strict=True), 1)
    ]


def test_the_two_part_at_the_second_fall_in_a_row_beyond_three_standard_errors() -> None:
    rising = range(5)
    assert parting([]) is None
    assert parting(rows([0, 10, 5.7, 7, 5.7], rising)) is None  # 3 sqrt(2) is 4.24
    found = parting([{"loss": 1.0}, *rows([0, 10, 5.7, 5.7, 5.7], rising), {"eval_reward": 1.0}])
    assert found is not None
    assert (found["kind"], found["step"]) == ("held_out", 4)
    assert "held-out x fell from 10 (step 2) to 5.7 while the reward rose" in found["message"]
    assert parting(rows([0, 10, 5.8, 5.8, 5.8], rising)) is None
    assert parting(rows([0, 10, 0, 0, 0], [0, 1, 1, 0.5, 1])) is None  # they fell together


def test_a_held_out_reward_may_say_nothing_and_other_numbers_are_none() -> None:
    def silent(completions: list[str], **_: Any) -> list[float | None]:
        return [None] * len(completions)

    given: tuple[Any, ...] = (["a", "b"], [" c", " d"], [[4], [5]], {})
    _, said_BF = weighted_scores([silent], None, *given)
    assert held_out_metrics(["silent"], [*zip("ab", said_BF.tolist(), strict=True)]) == {}
    with pytest.raises(UserError, match="every reward function returned None"):
        weighted_scores([silent], [1.0], *given)
    assert parting([{"step": 1, "reward": 1.0, "acc": 1.0, "acc_stderr": 0.1}]) is None


def test_runs_without_a_change_are_seldom_told_of_and_a_slow_fall_is_found() -> None:
    rng = np.random.default_rng(0)
    told = [parting(rows(*rng.standard_normal((2, 40)).tolist())) for _ in range(400)]
    assert sum(one is not None for one in told) <= 0.03 * 400
    rise_and_fall = 12 * np.sin(np.linspace(0, np.pi, 20))
    for _ in range(50):
        noisy = rise_and_fall + rng.standard_normal(20)
        assert parting(rows(noisy.tolist(), range(20))) is not None
