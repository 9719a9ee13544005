"""People who rate the policy's completions while it learns: whose score counts, and to the bit."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import pstdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sklearn.linear_model import Ridge
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from recipes.lib.errors import UserError
from recipes.lib.feedback.rows import item_id, make_row
from recipes.lib.feedback.store import Store
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.direct_feedback import LOG, DirectFeedback, head_of, ridge, targets
from recipes.lib.ppo.trainer import PPOTrainer
from recipes.lib.rewards.reward_models import RewardModel
from recipes.lib.runs.files import read_jsonl
from recipes.lib.trainers.progress import RunCallback
from tests.recipes.test_ppo_resume import StopAt, metrics, weights

ROLLOUT = 16


def shape(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_labels=1,
    )


def make(folder: Path, tokenizer: Any, *callbacks: Any, rewards: Any = None, **more: Any) -> Any:
    torch.manual_seed(0)
    policy = LlamaForCausalLM(shape(tokenizer))
    reward = LlamaForSequenceClassification(shape(tokenizer))
    rate: dict[str, Any] = {"learning_rate": 1e-2}
    args = PPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        total_episodes=48,
        rollout_batch_size=ROLLOUT,
        num_ppo_epochs=1,
        num_mini_batches=4,
        per_device_train_batch_size=4,
        max_completion_length=6,
        critic="head",
        **({"feedback": str(folder.parent / "live"), "feedback_episodes": 5} | rate | more),
    )
    words = "the cat sat on door".split()
    prompts = Dataset.from_list([{"prompt": " ".join(words[: 1 + i % 5])} for i in range(10)])
    return PPOTrainer(
        policy,
        reward if rewards is None else rewards,
        args,
        prompts,
        processing_class=tokenizer,
        reward_processing_classes=tokenizer if rewards is None else None,
        callbacks=[RunCallback(folder), *callbacks],
    )


@contextmanager
def person(project: Path, name: str = "anna", by: int = 1, passes: bool = False) -> Iterator[None]:
    """Somebody who rates whatever is asked by its number of words, or cannot judge any of it."""
    done = threading.Event()

    def answer() -> None:
        while not (project / "feedback.db").is_file():
            if done.wait(0.05):
                return
        store = Store(project / "feedback.db")
        store.add_annotator(name)
        while not done.wait(0.05):
            for asked in store.claim(name, 4):
                words = len(asked["item"]["completions"][0]["content"].split())
                told = {"annotator": name, "source": "human"}
                given: Any = {"value": 1 + (by * words) % 5}
                given = {"value": None, "weight": 0.0} if passes else given
                row = make_row(asked["item"], kind="rating", **given, **told)
                store.answer(asked["claim"], name, [row])

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_ratings_get_mean_and_spread_of_the_reward_models_scores_of_the_same() -> None:
    def row(who: str, rating: int, score: float) -> dict[str, Any]:
        return {"who": who, "rating": rating, "score": score}

    lines = [
        {"taken": [row("anna", 1, 0.0), row("anna", 3, 4.0), row("ben", 2, 9.0)]},
        {"taken": [row("anna", 5, 2.0), row("ben", 2, 1.0)]},
    ]
    spread = pstdev([0.0, 4.0, 2.0]) / pstdev([1, 3, 5])
    # anna: mean 3 becomes mean 2; ben has said one thing alone, which orders nothing
    assert targets(lines) == [
        [pytest.approx(2 - 2 * spread), pytest.approx(2.0), None],
        [pytest.approx(2 + 2 * spread), None],
    ]


def test_the_head_moves_by_ridge_regression_and_n_ratings_of_one_text_by_n_parts() -> None:
    draw = np.random.default_rng(0)
    hidden_NH, errors_N = draw.normal(size=(12, 5)), draw.normal(size=12)
    penalty = float((hidden_NH**2).sum(1).mean())
    known = Ridge(alpha=penalty, fit_intercept=False).fit(hidden_NH, errors_N)
    assert ridge(hidden_NH, errors_N) == pytest.approx(known.coef_)
    same_NH = np.tile(hidden_NH[:1], (3, 1))
    moved = same_NH[0] @ ridge(same_NH, np.full(3, 2.0))
    assert moved == pytest.approx(2.0 * 3 / 4)


def test_the_rated_have_peoples_scores_and_the_others_those_of_what_learned_from_them(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    trainer = make(tmp_path / "run", tiny_tokenizer)
    seen: list[list[Any]] = []
    whole = trainer.collector._finish

    def watched(episodes: list[Any], first: int) -> Any:
        asked = [trainer.collector.prompts.data[e.row]["prompt"] for e in episodes]
        seen.append([(e.score, e.said[0], p, e.text) for e, p in zip(episodes, asked, strict=True)])
        return whole(episodes, first)

    trainer.collector._finish = watched
    before = trainer.collector.people.first_H.copy()
    with person(tmp_path / "live"):
        trainer.train()
    lines = read_jsonl(tmp_path / "run" / LOG)
    assert [line["rollout"] for line in lines] == [0, 1, 2]
    for number, line in enumerate(lines):
        assert sorted(row["item"] for row in line["taken"]) == sorted(line["asked"])
        wanted = dict(
            zip(
                [r["item"] for r in line["taken"]],
                targets(lines[: number + 1])[number],
                strict=True,
            )
        )
        asked = [item_id([prompt, "rating"], [text]) for *_, prompt, text in seen[number][:5]]
        assert [*dict.fromkeys(asked)] == [*line["asked"]]
        for place, (score, said, *_) in enumerate(seen[number]):
            expected = wanted[asked[place]] if place < 5 else said
            assert score == pytest.approx(expected, abs=1e-6)
    assert [row["feedback/rated"] for row in metrics(tmp_path / "run")] == [5 / ROLLOUT] * 3
    assert all(row["time/people"] > 0 for row in read_jsonl(tmp_path / "run/metrics.jsonl"))
    assert "anna" not in (tmp_path / "run" / LOG).read_text()  # she may be forgotten
    # The head of the last rollout, from hidden states that transformers itself tells.
    model, rows = trainer.collector.people.reward.model, [r for x in lines[:2] for r in x["taken"]]
    tokens = lines[0]["asked"] | lines[1]["asked"]
    with torch.no_grad():
        hidden_NH = np.stack(
            [
                model.model(torch.tensor([tokens[row["item"]]]))
                .last_hidden_state[0, -1]
                .double()
                .numpy()
                for row in rows
            ]
        )
    wanted_N = np.array([target for line in targets(lines[:2]) for target in line])
    assert hidden_NH @ before == pytest.approx([row["score"] for row in rows], abs=1e-6)
    penalty = float((hidden_NH**2).sum(1).mean())
    known = Ridge(alpha=penalty, fit_intercept=False).fit(hidden_NH, wanted_N - hidden_NH @ before)
    head = model.score.weight.detach()[0].double().numpy()
    assert head == pytest.approx(before + known.coef_, abs=1e-5)
    assert np.abs(head - before).max() > 1e-4


def test_where_nobody_answers_the_reward_model_speaks_for_all(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    trainer = make(tmp_path / "run", tiny_tokenizer, feedback_timeout=0.5)
    begun = time.monotonic()
    trainer.train()
    assert time.monotonic() - begun > 1.5
    assert [row["feedback/rated"] for row in metrics(tmp_path / "run")] == [0.0, 0.0, 0.0]
    plain = make(tmp_path / "plain", tiny_tokenizer, feedback=None)
    plain.train()
    alike = [
        {key: value for key, value in row.items() if key != "feedback/rated"}
        for row in metrics(tmp_path / "run")
    ]
    assert alike == metrics(tmp_path / "plain")
    for name, weight in weights(trainer).items():
        assert torch.equal(weight, weights(plain)[name])


def test_who_cannot_judge_is_not_waited_for(tmp_path: Path, tiny_tokenizer: Any) -> None:
    trainer = make(tmp_path / "run", tiny_tokenizer, feedback_timeout=60.0)
    begun = time.monotonic()
    with person(tmp_path / "live", passes=True):
        trainer.train()
    assert time.monotonic() - begun < 30
    assert [row["feedback/rated"] for row in metrics(tmp_path / "run")] == [0.0, 0.0, 0.0]


def test_late_ratings_teach_the_head_and_what_is_old_is_asked_no_more(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    trainer = make(tmp_path / "run", tiny_tokenizer, feedback_timeout=0.0)
    people = trainer.collector.people
    items: dict[str, Any] = {}
    for number in (0, 1):
        items = {
            f"item {number} {n}": {
                "id": f"item {number} {n}",
                "prompt": "the cat",
                "completions": [{"content": text, "run": "run"}],
                "kind": "rating",
                "aspects": ["overall"],
            }
            for n, text in enumerate((" sat", " the dog", " on red door"))
        }
        people.lines.append(people._ask(number, items))
        claimed = people.project.store.claim("anna", 9)
        assert {asked["item"]["id"] for asked in claimed} == {*items}
        if number == 0:  # in hand, and answered after the rollout had gone on
            late = claimed
    for asked, value in zip(late, (1, 3, 5), strict=True):
        told: Any = {"kind": "rating", "value": value, "annotator": "anna", "source": "human"}
        people.project.store.answer(asked["claim"], "anna", [make_row(asked["item"], **told)])
    people.lines.append(people._ask(2, items))
    assert [row["rating"] for row in people.lines[2]["taken"]] == [1, 3, 5]
    assert people._ask(3, items)["taken"] == []  # once
    people.prepare(3)
    assert not np.array_equal(people.head.weight.detach()[0].numpy(), people.first_H)
    with people.as_it_began():
        assert people.head.weight.detach()[0].double().numpy() == pytest.approx(people.first_H)


def test_ratings_weigh_as_much_as_the_reward_model(tmp_path: Path, tiny_tokenizer: Any) -> None:
    trainer = make(tmp_path / "run", tiny_tokenizer, reward_weights=[10.0])
    rated: list[list[float]] = []
    whole = trainer.collector._finish

    def watched(episodes: list[Any], first: int) -> Any:
        rated.append([e.score for e in episodes[:5]])
        return whole(episodes, first)

    trainer.collector._finish = watched
    with person(tmp_path / "live"):
        trainer.train()
    line = read_jsonl(tmp_path / "run" / LOG)[0]
    known = {r["item"]: t for r, t in zip(line["taken"], targets([line])[0], strict=True)}
    wanted = [10 * (known[name] or 0.0) for name in line["asked"]]
    assert len(wanted) == 5  # no two texts of the five are equal
    assert rated[0] == pytest.approx(wanted)


@pytest.mark.parametrize("stop", [2, 5, 8])
def test_a_resumed_run_takes_the_same_ratings_again_whatever_was_said_since(
    tmp_path: Path, tiny_tokenizer: Any, stop: int
) -> None:
    with person(tmp_path / "live"):
        whole = make(tmp_path / "whole", tiny_tokenizer)
        whole.train()
    (tmp_path / "again").mkdir()
    with person(tmp_path / "again" / "live"):
        make(tmp_path / "again/run", tiny_tokenizer, StopAt(stop)).train()
    place = "run"
    if stop == 5:  # killed after it had taken the next rollout's: nobody need answer again
        shutil.copy(tmp_path / "whole" / LOG, tmp_path / "again/run" / LOG)
    if stop == 8:  # somewhere else, where no log lies
        place = "elsewhere"
    with person(tmp_path / "again" / "live", "anna" if stop != 5 else "nobody", by=1):
        second = make(tmp_path / "again" / place, tiny_tokenizer)
        second.train(resume_from_checkpoint=str(tmp_path / f"again/run/checkpoint-{stop}"))
    for name, weight in weights(second).items():
        assert torch.equal(weight, weights(whole)[name]), name
    assert read_jsonl(tmp_path / "again" / place / LOG) == read_jsonl(tmp_path / "whole" / LOG)


def test_ratings_of_other_completions_are_not_taken(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """A run that is begun anew in the folder of another one asks anew."""
    with person(tmp_path / "live"):
        make(tmp_path / "run", tiny_tokenizer).train()
        before = read_jsonl(tmp_path / "run" / LOG)
        make(tmp_path / "run", tiny_tokenizer, learning_rate=3e-2).train()
    after = read_jsonl(tmp_path / "run" / LOG)
    assert after[0] == before[0]  # the same completions, which have their ratings
    assert after[2]["asked"].keys() != before[2]["asked"].keys()
    for line in after:
        assert {row["item"] for row in line["taken"]} == {*line["asked"]}


@pytest.mark.parametrize("pad", [0, 1])  # 1 also ends a text, as where a tokenizer has no padding
def test_what_the_head_reads_is_what_scores_are_made_of(
    tmp_path: Path, tiny_tokenizer: Any, pad: int
) -> None:
    torch.manual_seed(1)
    reward = LlamaForSequenceClassification(shape(tiny_tokenizer))
    adapted = get_peft_model(reward, LoraConfig(task_type="SEQ_CLS", r=2))
    trainer = SimpleNamespace(
        worlds=None,
        args=SimpleNamespace(
            feedback=str(tmp_path / "live"),
            world_size=1,
            output_dir=str(tmp_path),
            reward_weights=None,
        ),
    )
    adapted.config.pad_token_id = pad
    model = RewardModel(adapted, tiny_tokenizer, "reward", 3)
    people = DirectFeedback(trainer, [model])
    rows = [[4, 5, 6, 1], [7, 8, 1], [9, 1], [4, 4, 4, 4, 1]]
    hidden_NH = people._hidden(rows)
    scores = model.score_tokens(rows)[:, 0].double().numpy()
    assert hidden_NH @ people.first_H == pytest.approx(scores, abs=1e-6)
    assert head_of(adapted).weight.shape == (1, 16)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"rewards": [lambda completions, **_: [0.0] * len(completions)]}, "one reward model"),
        ({"feedback_episodes": 0}, "feedback_episodes=0 must be 1 or more"),
        ({"feedback_timeout": -1.0}, "feedback_timeout=-1.0 must be 0 or more"),
    ],
)
def test_what_it_cannot_do_is_refused(
    tmp_path: Path, tiny_tokenizer: Any, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        make(tmp_path / "run", tiny_tokenizer, **more)
