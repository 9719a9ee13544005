import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.feedback import run
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from tests.helpers.length_judge import prepare


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return prepare(tmp_path, tiny_model, tiny_tokenizer, 40)


def simulate(folder: Path, name: str = "run", **values: Any) -> dict[str, Any]:
    keys = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "prompts.jsonl"),
        "test_fraction": 0.25,
        "judge": f"{folder / 'judge.py'}:judge",
        "rater_temperature": 5.0,
        "max_completion_length": 8,
        "output_dir": str(folder / name),
    }
    return run(parse("feedback", ["simulate"], keys | values))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("without_feedback_extra")
def test_simulate_writes_preferences_that_follow_from_its_feedback_rows(folder: Path) -> None:
    summary = simulate(folder)
    feedback = rows(folder / "run/feedback.jsonl")
    train, test = rows(folder / "run/final/train.jsonl"), rows(folder / "run/final/test.jsonl")
    assert (summary["num_pairs"], len(train), len(test)) == (len(feedback), 30, 10)
    assert all({"prompt", "chosen", "rejected"} == set(row) for row in train)
    by_prompt = {row["prompt"][0]["content"]: row for row in feedback}
    for row in train + test:
        source = by_prompt[row["prompt"][0]["content"]]
        contents = [completion["content"] for completion in source["completions"]]
        assert row["chosen"][0]["content"] == contents[source["value"]]
        assert row["rejected"][0]["content"] == contents[1 - source["value"]]
        assert contents[0] != contents[1]
    assert {row["source"] for row in feedback} == {"simulated"}
    assert len({row["id"] for row in feedback}) == len(feedback)


def test_train_and_test_pairs_come_from_different_prompts(folder: Path) -> None:
    simulate(folder)
    prompts = [
        {row["prompt"][0]["content"] for row in rows(folder / f"run/final/{split}.jsonl")}
        for split in ("train", "test")
    ]
    assert not prompts[0] & prompts[1]


def test_the_ceiling_is_one_minus_the_mean_noise_of_the_test_pairs(folder: Path) -> None:
    summary = simulate(folder)
    test = rows(folder / "run/final/test.jsonl")
    assert summary["accuracy_ceiling"] == pytest.approx(1 - sum(r["noise"] for r in test) / 10)
    # Equal lengths, and only they, are a toss-up.
    for row in test:
        is_tie = len(row["chosen"][0]["content"]) == len(row["rejected"][0]["content"])
        assert (row["noise"] == 0.5) == is_tie


def test_a_rater_without_noise_always_prefers_the_higher_score(folder: Path) -> None:
    simulate(folder, rater_temperature=1e-6)
    for row in rows(folder / "run/final/train.jsonl"):
        assert len(row["chosen"][0]["content"]) >= len(row["rejected"][0]["content"])
    assert {row["noise"] for row in rows(folder / "run/feedback.jsonl")} <= {0.0, 0.5}


def test_the_same_seed_gives_the_same_pairs_and_another_seed_does_not(folder: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        simulate(folder, name, seed=seed)
    texts = [(folder / name / "final/train.jsonl").read_text() for name in ("one", "two", "three")]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("judge", None, "judge is missing"),
        ("judge", "nowhere.py:judge", "nowhere.py is not there"),
        ("model_name_or_path", None, "model_name_or_path is missing"),
        ("test_fraction", 0.0, "test_fraction=0.0"),
        ("temperature", 0.0, "temperature=0.0"),
        ("rater_temperature", 0.0, "rater_temperature=0.0"),
    ],
)
def test_a_key_that_cannot_work_is_refused_before_anything_is_written(
    folder: Path, key: str, value: Any, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        simulate(folder, **{key: value})
    assert not (folder / "run").exists()
