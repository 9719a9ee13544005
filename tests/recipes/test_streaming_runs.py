"""Runs on a stream: they learn, resume exactly, share rows among processes, end where they must."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from recipes.lib.recipe.main import launch
from recipes.lib.runs.files import read_jsonl
from tests.helpers.mistakes import attempt
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags, write

ROOT = Path(__file__).parents[2]
SUBJECTS = ("cat", "dog", "bird", "child", "sun", "moon", "rain", "tree", "river", "stone")
ROWS = [
    {"prompt": f"the {one}", "completion": f" {verb} the {two} ."}
    for one in SUBJECTS
    for two in SUBJECTS
    for verb in ("was", "saw")
]
PAIRS = [
    {"prompt": f"the {one}", "chosen": f" {verb} happy .", "rejected": f" {verb} sad ."}
    for one in SUBJECTS
    for verb in ("was", "sat", "ran", "is")
]
STREAM = {
    "dataset_name": "rows.jsonl",
    "streaming": True,
    "max_length": 32,
    "test_fraction": 0.2,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-2,
    "max_steps": 24,
}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 12}


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(Path("model"), tiny_tokenizer)
    write(Path("rows.jsonl"), ROWS)
    write(Path("pairs.jsonl"), PAIRS)
    return tmp_path


@pytest.mark.parametrize("packing", [False, True])
def test_a_stopped_run_on_a_stream_resumes_to_the_same_weights(packing: bool, place: Path) -> None:
    # 24 steps of 16 rows pass the 160 rows more than twice, and the run is cut in the second pass.
    values = STREAM | CHECKPOINTS | ({"packing": True} if packing else {})
    assert launch("sft", flags(values | {"output_dir": "whole"})) == 0
    assert launch("sft", flags(values | {"output_dir": "cut"})) == 0
    for name in ("checkpoint-24", "final"):
        shutil.rmtree(place / "cut" / name)
    (place / "cut/summary.json").unlink()
    assert launch("sft", flags(values | {"output_dir": "cut", "resume": True})) == 0
    again = load_file(place / "cut/final/model.safetensors")
    for name, weight in load_file(place / "whole/final/model.safetensors").items():
        assert torch.equal(again[name], weight)
    losses = [row["loss"] for row in read_jsonl(place / "whole/metrics.jsonl") if "loss" in row]
    assert len(losses) == 24
    assert losses[-1] < losses[0] / 2


def test_a_reward_model_learns_from_a_stream(place: Path) -> None:
    values = STREAM | {"dataset_name": "pairs.jsonl", "max_steps": 12}
    assert launch("reward", flags(values)) == 0
    summary = json.loads((place / "run/summary.json").read_text())
    assert summary["accuracy"] == 1.0 == summary["accuracy_bag_of_words"]
    tested = {(row["prompt"], row["chosen"]) for row in read_jsonl(place / "run/samples.jsonl")}
    assert 1 <= len(tested) < len(PAIRS)


def test_dpo_learns_from_a_stream_and_resumes_to_the_same_weights(place: Path) -> None:
    # 12 steps of 8 pairs pass the about 30 pairs three times, and the run is cut at step 8.
    more = {"dataset_name": "pairs.jsonl", "max_steps": 12, "per_device_train_batch_size": 8}
    values = STREAM | more | {"save_strategy": "steps", "save_steps": 8, "beta": 0.5}
    assert launch("dpo", flags(values | {"output_dir": "whole"})) == 0
    assert launch("dpo", flags(values | {"output_dir": "cut", "max_steps": 12})) == 0
    for name in ("checkpoint-12", "final"):
        shutil.rmtree(place / "cut" / name)
    (place / "cut/summary.json").unlink()
    assert launch("dpo", flags(values | {"output_dir": "cut", "resume": True})) == 0
    again = load_file(place / "cut/final/model.safetensors")
    for name, weight in load_file(place / "whole/final/model.safetensors").items():
        assert torch.equal(again[name], weight)
    assert json.loads((place / "whole/summary.json").read_text())["accuracy"] == 1.0


def test_what_does_not_go_with_a_stream_in_dpo_is_one_sentence(place: Path) -> None:
    values = STREAM | {"dataset_name": "pairs.jsonl", "precompute_ref_log_probs": True}
    answer = attempt("dpo", flags(values), place)
    assert "`precompute_ref_log_probs=True` is not supported with IterableDataset" in (
        answer.sentence()
    )
    assert (answer.code, answer.changed) == (2, [])


def test_two_processes_share_a_stream_and_take_the_steps_of_one(place: Path) -> None:
    values = STREAM | {"max_steps": 6, "per_device_train_batch_size": 8}
    assert launch("sft", flags(values | {"output_dir": "one", "global_batch_size": 8})) == 0
    words = flags(values | {"output_dir": "two", "per_device_train_batch_size": 4})
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *start, "-m", "recipes.cli", "sft", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = load_file(place / "two/final/model.safetensors")
    start_weights = load_file(place / "model/model.safetensors")
    for name, weight in load_file(place / "one/final/model.safetensors").items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4)
        assert (weight - start_weights[name]).abs().max() > 1e-3


def test_a_limit_that_leaves_no_row_ends_the_run_instead_of_searching_on(place: Path) -> None:
    answer = attempt(
        "reward", flags(STREAM | {"dataset_name": "pairs.jsonl", "max_length": 2}), place
    )
    assert answer.sentence() == (
        "max_length=2: every training row is longer and dropped; raise it."
    )
    assert (answer.code, answer.changed) == (2, [])


def test_a_stream_needs_a_limit_within_the_models_context(place: Path) -> None:
    answer = attempt("sft", flags(STREAM | {"max_length": 65}), place)
    assert answer.sentence() == (
        "max_length=65: rows of a stream cannot be measured before the run, and the model's "
        "context has 64 tokens; set max_length to 64 or less."
    )
    assert (answer.code, answer.changed) == (2, [])


@pytest.mark.parametrize("recipe", ["kto", "ppo", "rloo", "grpo"])
def test_a_recipe_that_needs_all_its_rows_says_so(recipe: str, place: Path) -> None:
    words = ["--streaming", "--use_cpu", "--dataset_name", "rows.jsonl"]
    words += ["--model_name_or_path", "model"]
    if recipe in ("ppo", "rloo", "grpo"):
        words += ["--reward_funcs", "model"]
    answer = attempt(recipe, words, place)
    assert answer.sentence() == (
        "streaming=true: this recipe needs all its rows at hand; sft, reward and dpo stream. Leave "
        "it out, and cut very large data with a split or max_train_rows."
    )
    assert (answer.code, answer.changed) == (2, [])


def test_a_bad_row_ends_the_run_when_it_comes_and_once_mended_it_resumes_exactly(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.lib.data import streaming

    monkeypatch.setattr(streaming, "HEAD_ROWS", 100)
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 10)
    values = STREAM | {"save_strategy": "steps", "save_steps": 4}
    assert launch("sft", flags(values | {"output_dir": "whole"})) == 0
    write(Path("rows.jsonl"), [*ROWS, {"prompt": "the", "completion": " "}])
    answer = attempt("sft", flags(values), place)
    assert answer.sentence() == (
        "rows.jsonl: column 'completion' is empty in line 201; mend or remove it, or set "
        "on_bad_rows=drop; run/checkpoint-8 holds where it stands, --resume goes on."
    )
    assert answer.code == 2
    assert (place / "run/checkpoint-8/manifest.json").is_file()
    assert not (place / "run/final").exists()
    write(Path("rows.jsonl"), ROWS)
    assert launch("sft", flags(values | {"resume": True})) == 0
    mended = load_file(place / "run/final/model.safetensors")
    for name, weight in load_file(place / "whole/final/model.safetensors").items():
        assert torch.equal(mended[name], weight)
