"""The doctor on whole runs: check.json, what is a fault, and with which exit code."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.doctor.checkup import checks, hash_of, look
from recipes.lib.doctor.findings import texts
from recipes.lib.recipe.main import launch, parse
from recipes.lib.report.run_files import read_json
from recipes.reward import run
from tests.conftest import word_tokenizer
from tests.helpers.tiny_runs import FAST, LORA, write

ROWS = [
    {"prompt": f"the {who}", "chosen": f" {how} {old} happy .", "rejected": f" {how} {old} sad ."}
    for who, how, old in itertools.product(
        "cat dog bird child sun moon rain tree".split(),
        "was sat ran is".split(),
        "red old new small warm".split(),
    )
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two healthy runs, of a whole model and of an adapter, each with its check."""
    folder = tmp_path_factory.mktemp("check")
    tokenizer: PreTrainedTokenizerFast = word_tokenizer()
    torch.manual_seed(0)
    from transformers import LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes, **ids)
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    write(folder / "rows.jsonl", ROWS)
    for name, more in (("whole", {}), ("other", {"seed": 7}), ("adapter", LORA)):
        values = {
            "model_name_or_path": str(folder / "tiny"),
            "dataset_name": str(folder / "rows.jsonl"),
            "test_fraction": 0.3,
            "max_steps": 20,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "output_dir": str(folder / "reward" / name),
        }
        run(parse("reward", [], FAST | values | more))
        if name != "other":
            assert launch("check", [str(folder / "reward" / name)]) == 0
    return folder / "reward"


def answers(report: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in report["findings"]}


def damaged(runs: Path, target: Path, of: str = "whole") -> Path:
    shutil.copytree(runs / of, target)
    return target


def test_every_check_has_its_words() -> None:
    assert set(checks()) | {"heads_mixed_up"} == set(texts())


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_a_healthy_run_has_no_fault(runs: Path, name: str) -> None:
    report = read_json(runs / name / "check.json")
    said = answers(report)
    assert set(said) == set(checks())
    assert "fault" not in said.values()
    assert not any("it failed" in row["sentence"] for row in report["findings"])
    assert report["model"] == hash_of(str(runs / name / "final"))
    assert said["recorded_scores"] == said["last_column"] == said["pipeline"] == "fine"
    assert said["merged_and_shared"] == ("fine" if name == "adapter" else "not checked")
    assert "What the check found" in (runs / name / "report.html").read_text()


def test_a_fault_ends_the_command_with_code_3(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    it = damaged(runs, tmp_path / "it")
    file = it / "final" / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, file, {"format": "pt"})
    assert launch("check", [str(it)]) == 3
    said = capsys.readouterr()
    assert "recorded_scores: its scores are not those that its training wrote down" in said.err
    assert answers(read_json(it / "check.json"))["random_head"] == "fault"
    assert "Fault: its scores are not" in (it / "report.html").read_text()


def test_a_head_of_another_run_is_named(runs: Path) -> None:
    it = damaged(runs, runs / "mixed")
    file = it / "final" / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"] = load_file(runs / "other/final/model.safetensors")["score.weight"]
    save_file(weights, file, {"format": "pt"})
    first = next(row for row in look(str(it))["findings"] if row["status"] == "fault")
    assert first["name"] == "heads_mixed_up"
    assert first["details"]["twin"] == str(runs / "other")


def test_another_token_for_padding_reads_the_last_column(runs: Path, tmp_path: Path) -> None:
    it = damaged(runs, tmp_path / "it")
    config = read_json(it / "final" / "config.json")
    (it / "final" / "config.json").write_text(json.dumps(config | {"pad_token_id": 9}))
    said = answers(look(str(it)))
    assert next(name for name, status in said.items() if status == "fault") == "last_column"
    assert said["recorded_scores"] == "fine"  # this project asks the tokenizer


def test_an_adapter_without_its_head_is_named(runs: Path, tmp_path: Path) -> None:
    it = damaged(runs, tmp_path / "it", "adapter")
    file = it / "final" / "adapter_model.safetensors"
    weights = {name: one for name, one in load_file(file).items() if "score" not in name}
    save_file(weights, file, {"format": "pt"})
    assert answers(look(str(it))) == {"head_not_saved": "fault"}


def test_a_model_without_data_gets_what_needs_none(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "whole" / "final", tmp_path / "bare")
    said = answers(look(str(tmp_path / "bare")))
    assert said["last_column"] == said["pipeline"] == "fine"
    assert said["learned_nothing"] == said["leaked_rows"] == "not checked"
    assert "fault" not in said.values()
    assert not list(tmp_path.glob("**/check.json"))


def test_a_model_of_rankings_is_asked_about_the_pairs_that_they_imply(
    runs: Path, tmp_path: Path
) -> None:
    ranked = [
        {"prompt": row["prompt"], "completions": [row["rejected"], row["chosen"], " was old ."]}
        | {"ranks": [3, 1, 2]}
        for row in ROWS
    ]
    write(tmp_path / "ranks.jsonl", ranked)
    values = {
        "model_name_or_path": str(runs.parent / "tiny"),
        "dataset_name": str(tmp_path / "ranks.jsonl"),
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "output_dir": str(tmp_path / "it"),
    }
    run(parse("reward", [], FAST | values))
    assert launch("check", [str(tmp_path / "it")]) == 0
    said = answers(read_json(tmp_path / "it" / "check.json"))
    assert said["recorded_scores"] == said["learned_nothing"] == "fine"


def test_pairs_of_a_file_are_asked_about(runs: Path, tmp_path: Path) -> None:
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in ROWS]
    write(tmp_path / "pairs.jsonl", turned)
    words = [str(runs / "whole" / "final"), "--dataset_name", str(tmp_path / "pairs.jsonl")]
    shutil.copytree(runs / "whole" / "final", tmp_path / "bare")
    assert launch("check", [str(tmp_path / "bare"), *words[1:]]) == 3
