"""What annotators answered is what recipes learn from, told nothing but the name of the project."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes import dpo, feedback, kto, reward, sft
from recipes.lib.data.loading import read_rows
from recipes.lib.errors import UserError
from recipes.lib.feedback.rows import KINDS, check_row
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl
from tests.helpers.length_judge import prepare
from tests.helpers.tiny_runs import FAST

RECIPES = {"sft": sft, "reward": reward, "dpo": dpo, "kto": kto}
# The files of a project that each recipe learns from.
READS = {"sft": ["prompt_completion"], "dpo": ["preference"], "kto": ["unpaired_preference"]}
READS["reward"] = ["ranks", "ratings", "unpaired_preference"]
ANNOTATORS = [{"name": "anna"}, {"name": "bo", "temperature": 5.0, "position_bias": 2.0}]


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return prepare(tmp_path, tiny_model, tiny_tokenizer, 100)


def simulate(folder: Path, name: str, **values: Any) -> None:
    keys = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "prompts.jsonl"),
        "judge": f"{folder / 'judge.py'}:judge",
        "max_completion_length": 8,
        "output_dir": str(folder / name),
    }
    feedback.run(parse("feedback", ["simulate"], keys | values))


def train(recipe: str, folder: Path, project: str, **values: Any) -> dict[str, Any]:
    tiny = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / project),
        "test_fraction": 0.25,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "output_dir": str(folder / f"{recipe} on {project}"),
    }
    if recipe == "reward":
        tiny["skip_check"] = True  # two steps teach it nothing
    return RECIPES[recipe].run(parse(recipe, [], FAST | tiny | values))


def test_what_is_simulated_is_what_each_recipe_learns_from(folder: Path) -> None:
    simulate(folder, "project", kinds=[*KINDS], annotators=ANNOTATORS, num_completions=3)
    answers = read_jsonl(folder / "project/feedback.jsonl")
    for row in answers:
        check_row(row)
    assert {(row["kind"], row["annotator"]) for row in answers} == {
        (kind, name) for kind in KINDS for name in ("anna", "bo")
    }
    files = {path.stem: read_jsonl(path) for path in (folder / "project/final").iterdir()}
    assert set(files) == {name for names in READS.values() for name in names}
    numbers = json.loads((folder / "project/summary.json").read_text())
    assert {name: numbers[f"num_{name}"] for name in files} == dict(
        zip(files, map(len, files.values()), strict=True)
    )
    for recipe, names in READS.items():
        given = parse(recipe, [], FAST | {"dataset_name": str(folder / "project")})
        given.script.reads_answers = recipe == "reward"
        rows, _ = read_rows(given.script, 0)
        assert len(rows) == sum(len(files[name]) for name in names)
        assert train(recipe, folder, "project")["train_loss"] > 0


def test_a_project_without_what_a_recipe_learns_from_is_told(folder: Path) -> None:
    simulate(folder, "thumbs", kinds=["thumb"], max_train_rows=5)
    for recipe, file in (("sft", "prompt_completion"), ("dpo", "preference")):
        with pytest.raises(UserError, match=f"holds unpaired_preference and no {file}, from which"):
            train(recipe, folder, "thumbs")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_answers_of_each_kind_alone_train_a_reward_model(folder: Path, kind: str) -> None:
    ties = [{"name": "anna", "tie": 1.0}]
    simulate(folder, "project", kinds=[kind, kind], annotators=ties, num_completions=3)
    assert train("reward", folder, "project")["accuracy"] >= 0


def test_pairs_alone_hold_the_ties_of_annotators_who_tie(folder: Path) -> None:
    raters = [{"name": "anna", "tie": 1.0}, {"name": "bo", "temperature": 5.0}]
    simulate(folder, "pairs", kinds=["pair"], annotators=raters, test_fraction=0.25)
    files = {path.stem: read_jsonl(path) for path in (folder / "pairs/final").iterdir()}
    assert {*files} == {"preference", "ranks", "test"}
    answers = read_jsonl(folder / "pairs/feedback.jsonl")
    tests = {row["prompt"][0]["content"] for row in files["test"]}
    assert len(tests) == 25
    known = [row for row in answers if row["prompt"][0]["content"] not in tests]
    said = [[turns[0]["content"] for turns in row["completions"]] for row in files["ranks"]]
    assert said == [[one["content"] for one in row["completions"]] for row in known]
    ranks = {0: [1, 2], 1: [2, 1], None: [1, 1]}
    assert [row["ranks"] for row in files["ranks"]] == [ranks[row["value"]] for row in known]
    num_ties = sum(row["value"] is None for row in known)
    assert 0 < num_ties == len(files["ranks"]) - len(files["preference"])
    held_out = [row for row in answers if row["prompt"][0]["content"] in tests]
    noises = [row["noise"] for row in held_out if row["value"] is not None]
    assert [row["noise"] for row in files["test"]] == noises
    numbers = json.loads((folder / "pairs/summary.json").read_text())
    assert numbers["accuracy_ceiling"] == pytest.approx(1 - sum(noises) / len(noises))
    assert (numbers["num_train"], numbers["num_test"]) == (len(known), len(noises))
    summary = train("reward", folder, "pairs", test_fraction=0, save_strategy="steps", save_steps=2)
    beside = load_file(folder / "reward on pairs/checkpoint-2/beside.safetensors")
    # The log-weight of a tie begins at their share, and two steps move it by 0.01 each.
    assert float(beside["ties"][0]) == pytest.approx(
        math.log((4 * num_ties + 1) / (2 * (len(known) - num_ties) + 1)), abs=0.021
    )
    assert len(read_jsonl(folder / "reward on pairs/samples.jsonl")) == len(noises)
    assert summary["accuracy"] >= 0
    assert train("dpo", folder, "pairs", test_fraction=0)["train_loss"] > 0


def test_test_pairs_that_are_all_ties_are_refused(folder: Path) -> None:
    ties = [{"name": "anna", "tie": 1e30}]
    with pytest.raises(UserError, match="annotators: every test pair is a tie; lower tie"):
        simulate(folder, "ties", kinds=["pair"], annotators=ties, test_fraction=0.25)


def test_an_export_of_ties_alone_is_refused_in_a_sentence(folder: Path) -> None:
    ties = [{"name": "anna", "tie": 1e30}]
    simulate(folder, "ties", kinds=["pair", "pair"], annotators=ties, max_train_rows=20)
    assert [path.name for path in (folder / "ties/final").iterdir()] == ["ranks.jsonl"]
    with pytest.raises(UserError, match="every training row is a tie or has the same value"):
        train("reward", folder, "ties")
