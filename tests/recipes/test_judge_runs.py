"""Whole runs with a language model as the judge, on a server of this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import feedback
from recipes.evaluate import main as evaluate
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import launch, parse
from recipes.lib.rewards import judge_models
from recipes.lib.runs.files import read_jsonl
from tests.helpers.judge_server import Call, JudgeServer, serving, words
from tests.helpers.tiny_runs import write

BASE = Path(__file__).parents[2] / "recipes/lib/tasks/tales/trained"
PROMPTS = [{"prompt": f"Once there was a {animal}"} for animal in ("cat", "dog", "fox", "hen")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped base, one that differs from it in its head, and prompts."""
    monkeypatch.setattr(judge_models, "BACKOFF", 0.01)
    monkeypatch.setenv("JUDGE_KEY", "sk-not-a-real-key-4711")
    model = AutoModelForCausalLM.from_pretrained(BASE)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head += 0.05 * head.std() * torch.randn(head.shape, generator=torch.manual_seed(1))
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path / "other")
    write(tmp_path / "prompts.jsonl", PROMPTS)
    return tmp_path


def judge(server: JudgeServer, folder: Path) -> str:
    priced = {"price_in": 1.0, "price_out": 2.0, "api_key_variable": "JUDGE_KEY"}
    return server.file(folder / "judge.yaml", **priced)


def longer(call: Call) -> None:
    """The longer one, the first of equal ones; every third question meets a fault before."""
    if call.number % 3 == 0:
        call.drop()
        return
    a, b = (len(call.part(f"completion {letter}")) // 12 for letter in "AB")
    call.verdict("B" if b > a else "A")


def test_evaluation_by_a_judge_is_by_both_orders(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", folder / "other", "--baseline", BASE, "--output_dir", folder / "out"]
    words += ["--dataset_name", folder / "prompts.jsonl", "--max_completion_length", 24]
    with serving(longer) as server:
        words += ["--judge", judge(server, folder)]
        assert evaluate([str(word) for word in words]) == 0
        num_calls = len(server.calls)
    rows = read_jsonl(folder / "out/samples.jsonl")
    flips, points = 0, []
    for row in rows:
        ours, theirs = len(row["completion"]) // 12, len(row["baseline"]) // 12
        flipped = ours == theirs and row["completion"] != row["baseline"]
        wins = 0.5 if ours == theirs else float(ours > theirs)
        said = ["one", "other"] if flipped else {1.0: ["one"] * 2, 0.0: ["other"] * 2}.get(wins)
        assert row["verdicts"] == (said or ["tie", "tie"])
        assert row["score"] == wins == 1 - row["score_baseline"]
        flips += flipped
        points.append(wins)
    summary = json.loads((folder / "out/summary.json").read_text())
    assert summary["win_rate"] == pytest.approx(sum(points) / 4)
    assert summary["win_rate_ci95"][0] <= summary["win_rate"] <= summary["win_rate_ci95"][1]
    assert summary["judge_flips"] == flips
    assert summary["judge_asked"] + summary["judge_retried"] == num_calls
    assert summary["judge_retried"] == -(-num_calls // 3)
    assert summary["judge_cost"] == pytest.approx(summary["judge_asked"] * 120 / 1e6)
    assert "judge flips" in capsys.readouterr().out.replace("_", " ")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if b"sk-not-a-real" in path.read_bytes()]


GROUPS = {"max_steps": 2, "num_generations": 4}
SAMPLED = {"ppo": {"total_episodes": 16, "rollout_batch_size": 8}, "rloo": GROUPS, "grpo": GROUPS}


@pytest.mark.parametrize("recipe", SAMPLED)
def test_a_policy_learns_from_a_judge_and_nothing_is_asked_twice(recipe: str, folder: Path) -> None:
    values: dict[str, Any] = SAMPLED[recipe] | {
        "model_name_or_path": BASE,
        "dataset_name": folder / "prompts.jsonl",
        "per_device_train_batch_size": 8,
        "max_completion_length": 12,
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "output_dir": folder / "run",
    }
    with serving(lambda call: call.verdict(words(call))) as server:
        values["reward_funcs"] = judge(server, folder)
        flags = [str(word) for key, value in values.items() for word in (f"--{key}", value)]
        assert launch(recipe, flags) == 0
        num_calls = len(server.calls)
    rows = [row for row in read_jsonl(folder / "run/metrics.jsonl") if "loss" in row]
    summary = json.loads((folder / "run/summary.json").read_text())
    assert (rows[-1] if recipe == "ppo" else summary)["judge_asked"] == num_calls
    assert summary["judge_asked"] + summary["judge_cached"] == 16 == summary["judge_questions"]
    assert summary["judge_cost"] == pytest.approx(num_calls * 120 / 1e6)
    # The server is gone, and the same run from its beginning has the same rewards.
    assert launch(recipe, [*flags, "--overwrite"]) == 0
    again = [row for row in read_jsonl(folder / "run/metrics.jsonl") if "loss" in row]
    name = "objective/scores" if recipe == "ppo" else "reward"
    assert [row[name] for row in again] == [row[name] for row in rows]
    assert all(1 <= row[name] <= 10 for row in rows)
    assert json.loads((folder / "run/summary.json").read_text())["judge_asked"] == 0


def test_a_judge_answers_items_and_sampled_pairs_as_a_rater(folder: Path) -> None:
    items: list[dict[str, Any]] = [
        {"prompt": row["prompt"], "completions": [" a b", f" a b c d e f g h {n}"]}
        for n, row in enumerate(PROMPTS)
    ]
    items += [{"prompt": "Once", "completions": [" one day", " one way"], "held_out": True}]
    write(folder / "items.jsonl", items)
    with serving(longer) as server:
        keys: dict[str, Any] = {"judge": judge(server, folder)}
        ready = {"items": str(folder / "items.jsonl"), "output_dir": str(folder / "ready")}
        summary = feedback.run(parse("feedback", ["simulate"], keys | ready))
        sampled = {"dataset_name": str(folder / "prompts.jsonl"), "test_fraction": 0.5, "seed": 1}
        sampled |= {"model_name_or_path": str(BASE), "output_dir": str(folder / "sampled")}
        sampled["max_completion_length"] = 24
        of_sampled = feedback.run(parse("feedback", ["simulate"], keys | sampled))
    rows = read_jsonl(folder / "ready/answers.jsonl")
    assert [row["value"] for row in rows] == [1, 1, 1, 1, None]  # whichever stands first: a tie
    assert {(row["source"], row["annotator"]) for row in rows} == {("model", "judge")}
    trained = read_jsonl(folder / "ready/final/preference.jsonl")
    assert [row["chosen"] for row in trained] == [item["completions"][1] for item in items[:4]]
    assert not (folder / "ready/final/test.jsonl").exists()  # a tie orders nothing
    assert summary["judge_questions"] == 10
    assert of_sampled["num_pairs"] + of_sampled["num_left_out"] == 4
    tests = {row["prompt"] for row in read_jsonl(folder / "sampled/final/test.jsonl")}
    ranks = {row["prompt"] for row in read_jsonl(folder / "sampled/final/ranks.jsonl")}
    assert tests
    assert not tests & ranks


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"kinds": ["rating"]}, "compares pairs by itself"),
        ({"annotators": [{"name": "anna"}]}, "compares pairs by itself"),
        ({"model_name_or_path": str(BASE)}, "leave model_name_or_path out"),
        ({"dataset_name": "prompts.jsonl"}, "leave dataset_name out"),
    ],
)
def test_a_judge_as_a_rater_refuses_what_it_does_not_read(
    folder: Path, keys: dict[str, Any], told: str
) -> None:
    write(folder / "items.jsonl", [{"prompt": "Once", "completions": [" a", " b"]}])
    values = {"judge": str(folder / "judge.yaml"), "items": str(folder / "items.jsonl")} | keys
    with pytest.raises(UserError, match=told):
        feedback.run(parse("feedback", ["simulate"], values | {"output_dir": str(folder / "out")}))


def test_a_function_of_tokens_does_not_judge_items_which_have_none(folder: Path) -> None:
    write(folder / "items.jsonl", [{"prompt": "Once", "completions": [" a", " b"]}])
    (folder / "tokens.py").write_text(
        "def count(completion_ids, **_):\n    return [float(len(ids)) for ids in completion_ids]\n"
    )
    values = {"judge": f"{folder / 'tokens.py'}:count", "items": str(folder / "items.jsonl")}
    with pytest.raises(UserError, match="reads completion_ids"):
        feedback.run(parse("feedback", ["simulate"], values | {"output_dir": str(folder / "out")}))
