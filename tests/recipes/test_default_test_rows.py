"""Test rows where nobody asked for any: which, what is evaluated on them, and after a resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes import dpo, kto, reward, sft
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl
from tests.helpers.tiny_runs import FAST, write

RECIPES = {"sft": sft, "reward": reward, "dpo": dpo, "kto": kto}
SUBJECTS = ("cat", "dog", "bird", "child", "sun", "moon", "rain", "tree")
VERBS = ("was", "sat", "ran", "is")
WORDS = [(s, v, c) for s in SUBJECTS for v in VERBS for c in ("the", "a", "of")]
PAIRS = [
    {"prompt": f"{c} {s}", "chosen": f" {v} happy .", "rejected": f" {v} sad ."}
    for s, v, c in WORDS
]
TEXTS = [{"prompt": f"{c} {s}", "completion": f" {v} happy ."} for s, v, c in WORDS]
STEPS = {"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    write(tmp_path / "sft.jsonl", TEXTS)
    write(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path


def train(folder: Path, recipe: str = "sft", name: str = "run", **more: Any) -> dict[str, Any]:
    values = FAST | STEPS | {"model_name_or_path": str(folder / "tiny")}
    rows = "sft.jsonl" if recipe == "sft" else "pairs.jsonl"
    values |= {"dataset_name": str(folder / rows), "output_dir": str(folder / name)} | more
    return RECIPES[recipe].run(parse(recipe, [], values))


def kept_keys(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return values


def evaluated(folder: Path) -> list[int]:
    return [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if "eval_loss" in row]


@pytest.mark.parametrize("recipe", RECIPES)
def test_eight_of_ninety_six_rows_are_held_out_and_evaluated_at_each_quarter(
    recipe: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(WORDS) == 96
    summary = train(folder, recipe)
    assert "8 of 96 rows are held out to test on; test_fraction=0 trains" in capsys.readouterr().err
    measure = {"sft": "perplexity", "kto": "margin"}.get(recipe, "accuracy")
    assert measure in summary
    assert evaluated(folder / "run")[:4] == [2, 4, 6, 8]
    assert kept_keys(folder / "run")["test_fraction"] == 8
    samples = read_jsonl(folder / "run" / "samples.jsonl")
    assert len(samples) == {"sft": 5, "kto": 16}.get(recipe, 8)


def test_a_resume_holds_out_the_same_rows(folder: Path) -> None:
    summary = train(folder, save_strategy="steps", save_steps=4)
    again = shutil.copytree(folder / "run", folder / "again")
    for path in ("summary.json", "final", "checkpoint-8"):
        gone = again / path
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    more = train(folder, name="again", save_strategy="steps", save_steps=4, resume=True)
    assert more | {"seconds": 0} == summary | {"seconds": 0}
    assert evaluated(again) == evaluated(folder / "run")
    weights = [load_file(folder / name / "final/model.safetensors") for name in ("run", "again")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_run_of_an_older_version_goes_on_with_all_its_rows(folder: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 4}
    train(folder, test_fraction=0, **saved)
    whole = load_file(folder / "run/final/model.safetensors")
    keys = kept_keys(folder / "run")
    del keys["test_fraction"]  # such a run had no such key, and no test rows
    (folder / "run/config.yaml").write_text(yaml.safe_dump(keys))
    for path in ("final", "checkpoint-8"):
        shutil.rmtree(folder / "run" / path)
    (folder / "run/summary.json").unlink()
    assert "eval_loss" not in train(folder, resume=True, **saved)
    resumed = load_file(folder / "run/final/model.safetensors")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("told", [{"test_fraction": 0}, {"eval_strategy": "no"}])
def test_who_wants_none_has_none(told: dict[str, Any], folder: Path) -> None:
    summary = train(folder, **STEPS | {"max_steps": 1} | told)
    assert "eval_loss" not in summary
    assert "eval_loss" not in json.dumps(read_jsonl(folder / "run" / "metrics.jsonl"))
