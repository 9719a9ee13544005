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
from recipes.lib.doctor.gate import check_rewards, examined
from recipes.lib.errors import FaultError
from recipes.lib.recipe.main import launch, parse
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.files import read_jsonl
from recipes.reward import run
from tests.conftest import word_tokenizer
from tests.helpers.tiny_runs import FAST, LORA, flags, write

ROWS = [
    {"prompt": f"the {who}", "chosen": f" {how} {old} happy .", "rejected": f" {how} {old} sad ."}
    for who, how, old in itertools.product(
        "cat dog bird child sun moon rain tree".split(),
        "was sat ran is".split(),
        "red old new small warm".split(),
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    folder = tmp_path_factory.mktemp("check")
    tokenizer: PreTrainedTokenizerFast = word_tokenizer()
    torch.manual_seed(0)
    from transformers import LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes, **ids)
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """Healthy runs, two of whole models and one of an adapter, each with its check."""
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
    return folder / "reward"


def answers(report: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in report["findings"]}


def damaged(runs: Path, target: Path, of: str = "whole") -> Path:
    shutil.copytree(runs / of, target)
    return target


def turned(runs: Path, target: Path) -> Path:
    """A run whose head says the opposite of what it learned, with the check of its old weights."""
    file = damaged(runs, target) / "final" / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, file, {"format": "pt"})
    return target


def asked_to_learn(runs: Path, folder: Path, recipe: str, *rewards: Path | str) -> dict[str, Any]:
    """Keys of a short run of a recipe that samples."""
    write(folder / "prompts.jsonl", [{"prompt": f"the {who}"} for who in ("cat", "dog")] * 4)
    values = {
        "model_name_or_path": str(runs.parent / "tiny"),
        "dataset_name": str(folder / "prompts.jsonl"),
        "reward_funcs": [str(reward) for reward in rewards],
        "max_completion_length": 4,
        "per_device_train_batch_size": 4,
        "output_dir": str(folder / recipe),
    }
    if recipe == "ppo":
        return values | {"total_episodes": 8, "rollout_batch_size": 8, "num_mini_batches": 1}
    return values | {"max_steps": 1, "num_generations": 4}


def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever examines a model now fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("it was examined")

    monkeypatch.setattr("recipes.lib.doctor.checkup.check_up", fail)


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
    it = turned(runs, tmp_path / "it")
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


def test_a_model_of_16_bits_is_asked_in_16_bits(runs: Path, tmp_path: Path) -> None:
    values = {
        "model_name_or_path": str(runs.parent / "tiny"),
        "dataset_name": str(runs.parent / "rows.jsonl"),
        "test_fraction": 0.3,
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "dtype": "bfloat16",
        "output_dir": str(tmp_path / "it"),
    }
    run(parse("reward", [], FAST | values))
    file, limit = tmp_path / "it/final/model.safetensors", 0.1
    found = {row["name"]: row for row in read_json(tmp_path / "it/check.json")["findings"]}
    assert found["recorded_scores"]["statistic"] == 0.0
    assert found["recorded_scores"]["limit"] == limit
    weights = load_file(file)
    weights["score.weight"] *= 1.25  # two bits of a mantissa's eight: nothing else is rounded
    save_file(weights, file, {"format": "pt"})
    rows = read_jsonl(tmp_path / "it/samples.jsonl")
    before = torch.tensor([[row["score_chosen"], row["score_rejected"]] for row in rows])
    expected = 0.25 * before.abs().max() / before.std(correction=0)
    found = {row["name"]: row for row in look(str(tmp_path / "it"))["findings"]}
    assert found["recorded_scores"]["status"] == "fault"
    assert found["recorded_scores"]["statistic"] == pytest.approx(expected.item(), rel=0.05)


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


def test_a_training_that_learned_nothing_is_whole_and_ends_with_code_3(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = [row | {"prompt": f"look {row['prompt']}"} for row in ROWS]
    wrong = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in right]
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", right[::2] + wrong[1::2])
    values = {
        "model_name_or_path": str(runs.parent / "tiny"),
        "dataset_name": str(tmp_path / "train.jsonl"),
        "test_dataset_name": str(tmp_path / "test.jsonl"),
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "output_dir": str(tmp_path / "it"),
    }
    assert launch("reward", flags(values)) == 3
    it, (printed, said) = tmp_path / "it", capsys.readouterr()
    assert "accuracy_bag_of_words" in printed.replace(" ", "_")
    assert "report.html" in printed
    assert "Next" not in printed
    assert f"reward model {it}: learned_nothing: 0.50 of 160 pairs in the right order" in said
    assert "--skip_check true goes on" in said
    assert read_json(it / "summary.json")["accuracy"] == 0.5
    assert read_json(it / "check.json")["model"] == hash_of(str(it / "final"))
    assert "Fault: 0.50 of 160 pairs" in (it / "report.html").read_text()
    assert launch("reward", flags(values | {"overwrite": True, "skip_check": True})) == 0
    assert not (it / "check.json").exists()


@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_no_policy_learns_from_a_reward_model_at_fault(
    recipe: str,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = turned(runs, tmp_path / "it")
    values = asked_to_learn(runs, tmp_path, recipe, runs / "whole", it)
    assert launch(recipe, flags(values)) == 3  # the check that lies there is of other weights
    said = capsys.readouterr().err
    assert f"reward model {it}: recorded_scores: its scores are not those" in said
    assert "or go on with --skip_check true." in said
    assert not (tmp_path / recipe).exists()
    assert read_json(it / "check.json")["model"] == hash_of(str(it / "final"))
    unasked(monkeypatch)
    assert launch(recipe, flags(values)) == 3  # which it is known to be
    assert launch(recipe, flags(values | {"skip_check": True})) == 0
    assert (tmp_path / recipe / "summary.json").is_file()


def test_nothing_is_asked_where_an_answer_is_there_or_the_run_goes_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unasked(monkeypatch)
    known = [str(runs / "whole"), str(runs / "adapter/final"), "rewards.py:score", "judge.yaml"]
    values = asked_to_learn(runs, tmp_path, "ppo", *known)
    check_rewards(parse("ppo", [], FAST | values))
    it = turned(runs, tmp_path / "it")
    (tmp_path / "ppo").mkdir()
    write(tmp_path / "ppo/config.yaml", [])
    config = parse("ppo", [], FAST | asked_to_learn(runs, tmp_path, "ppo", it) | {"resume": True})
    check_rewards(config)


def test_a_check_leaves_no_trace_in_the_numbers_and_needs_no_place_to_write(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("adapter", "whole"):
        (damaged(runs, tmp_path / name, name) / "check.json").unlink()
    config = parse("ppo", [], FAST | asked_to_learn(runs, tmp_path, "ppo", tmp_path / "adapter"))
    before = torch.get_rng_state()
    check_rewards(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert (tmp_path / "adapter/check.json").is_file()

    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("recipes.lib.doctor.checkup.write_json", refuse)
    assert examined(config, str(tmp_path / "whole"))["status"] != "fault"


def test_what_cannot_be_asked_stops_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    it = turned(runs, tmp_path / "it")
    config = parse("ppo", [], FAST | asked_to_learn(runs, tmp_path, "ppo", it, "nobody/nothing"))
    with pytest.raises(FaultError):
        check_rewards(config)
    (it / "check.json").unlink()

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("recipes.lib.doctor.subject.examine", full)
    capsys.readouterr()
    check_rewards(config)
    said = capsys.readouterr().err
    assert said.startswith(f"note: reward model {it} is not checked (CUDA out of memory).\n")


def test_a_large_model_is_left_to_whoever_asks(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    it = turned(runs, tmp_path / "it")
    config = parse("ppo", [], FAST | asked_to_learn(runs, tmp_path, "ppo", it))
    monkeypatch.setattr("recipes.lib.plan.check.machine_memory", lambda: 10_000)
    check_rewards(config)
    assert "is not checked (in 32 bits it takes" in capsys.readouterr().err


def aspects(folder: Path, target: Path, ensemble: int) -> dict[str, Any]:
    """A run whose two aspects like opposite moods, and what its check says."""
    rows = [row | {"aspect": "mood"} for row in ROWS[::2]]
    rows += [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        | {"aspect": "gloom"}
        for row in ROWS[1::2]
    ]
    write(target.parent / "rows.jsonl", rows)
    values = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(target.parent / "rows.jsonl"),
        "test_fraction": 0.4,
        "max_steps": 30,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "ensemble": ensemble,
        "output_dir": str(target),
    }
    run(parse("reward", [], FAST | values))
    return read_json(target / "check.json")


@pytest.mark.parametrize(
    ("ensemble", "places", "order"),
    [(1, [1, 0], "mood, gloom"), (2, [0, 2, 1, 3], "gloom, mood, gloom, mood")],
    ids=["each", "by members"],
)
def test_a_model_of_several_aspects_is_asked_in_the_aspect_of_each_pair(
    folder: Path, tmp_path: Path, ensemble: int, places: list[int], order: str
) -> None:
    it = tmp_path / "it"
    report = aspects(folder, it, ensemble)
    said = answers(report)
    assert said["recorded_scores"] == said["learned_nothing"] == said["pipeline"] == "fine"
    assert said["outputs_mixed_up"] == "fine"
    assert not any("it failed" in row["sentence"] for row in report["findings"])
    file = it / "final" / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"score.weight": weights["score.weight"][places]}, file, {"format": "pt"})
    first = next(row for row in look(str(it))["findings"] if row["status"] == "fault")
    assert first["name"] == "outputs_mixed_up"
    assert first["details"]["order"] == order
    assert f"taken to be about {order} they tell " in first["sentence"]
    # Which output now likes which mood, by hand.
    names = ["gloom", "mood"] if ensemble == 1 else ["gloom 1", "gloom 2", "mood 1", "mood 2"]
    likes = dict(zip(names, order.split(", "), strict=True))
    assert first["details"]["accuracies"] == pytest.approx(
        {
            f"{aspect} by {name}": float(likes[name] == aspect)
            for aspect in ("gloom", "mood")
            for name in names
        },
        abs=0.1,
    )
