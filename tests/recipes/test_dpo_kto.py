"""DPO and KTO learn a preference that is easy to see, write a whole run, and resume exactly."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from recipes import dpo, kto
from recipes.lib.recipe.main import launch, parse
from recipes.lib.runs.files import read_jsonl
from tests.helpers.tiny_runs import FAST, LORA, write

RECIPES = {"dpo": dpo, "kto": kto}
SUBJECTS = ("cat", "dog", "bird", "child", "sun", "moon", "rain", "tree")
PAIRS = [
    {"prompt": f"the {subject}", "chosen": f" {verb} happy .", "rejected": f" {verb} sad ."}
    for subject in SUBJECTS
    for verb in ("was", "sat", "ran", "is")
]


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    write(tmp_path / "rows.jsonl", PAIRS)
    return tmp_path


def values_of(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    tiny = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / "rows.jsonl"),
        "test_fraction": 0.25,
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "output_dir": str(folder / name),
    }
    return FAST | tiny | more


def train(recipe: str, folder: Path, name: str, **more: Any) -> dict[str, Any]:
    return RECIPES[recipe].run(parse(recipe, [], values_of(folder, name, **more)))


def logp(path: Path, prompt: str, completion: str) -> float:
    """Of a completion and the end token, one text at a time, by plain transformers."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    before = tokenizer(prompt)["input_ids"]
    ids = before + tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logps[i - 1, ids[i]]) for i in range(len(before), len(ids)))


def files(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


WHOLE = {
    "config.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "lineage.json",
    "summary.json",
    "report.html",
    "final",
}


def test_dpo_raises_chosen_above_rejected_and_its_rewards_are_those_of_final(folder: Path) -> None:
    summary = train("dpo", folder, "run")
    assert json.loads((folder / "run/summary.json").read_text()) == summary
    assert files(folder / "run") == WHOLE
    rows = read_jsonl(folder / "run/samples.jsonl")
    assert len(rows) == 8
    assert summary["accuracy"] == 1.0
    assert "accuracy_ceiling" not in summary
    margins = [row["score_chosen"] - row["score_rejected"] for row in rows]
    assert summary["margin"] == pytest.approx(sum(margins) / 8)
    assert summary["margin"] > 0.3
    for side in ("chosen", "rejected"):
        text = rows[0]["prompt"], rows[0][side]
        ratio = logp(folder / "run/final", *text) - logp(folder / "tiny", *text)
        assert rows[0][f"score_{side}"] == pytest.approx(0.1 * ratio, abs=1e-5)
    first = read_jsonl(folder / "run/metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    page = (folder / "run/report.html").read_text(encoding="utf-8")
    assert "Training raised the chosen completion above the rejected one in 100.0" in page
    for title in ("Accuracy", "Implicit rewards", "Margins on test pairs"):
        assert f">{title}<" in page


def test_what_trl_evaluates_is_what_the_samples_say(folder: Path) -> None:
    # The last evaluation comes after the last step, on one batch of 8 pairs.
    train("dpo", folder, "run", eval_strategy="steps", eval_steps=8, max_steps=8)
    (said,) = [
        row for row in read_jsonl(folder / "run/metrics.jsonl") if "eval_rewards/margins" in row
    ]
    rows = read_jsonl(folder / "run/samples.jsonl")
    for side in ("chosen", "rejected"):
        mean = sum(row[f"score_{side}"] for row in rows) / len(rows)
        assert said[f"eval_rewards/{side}"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_lora_runs_chain_and_the_reference_is_what_the_run_began_from(
    recipe: str, folder: Path
) -> None:
    train(recipe, folder, "lora", **LORA)
    assert (folder / "lora/final/adapter_config.json").is_file()
    train(recipe, folder, "next", model_name_or_path=str(folder / "lora"), max_steps=1)
    first = read_jsonl(folder / "next/metrics.jsonl")[0]
    for side in ("chosen", "rejected"):
        assert first[f"rewards/{side}"] == pytest.approx(0, abs=1e-6)


def test_the_ceiling_is_one_minus_the_mean_noise_of_the_test_rows(folder: Path) -> None:
    # As `rlhf feedback` writes them: a folder with train and test, the test rows with their noise.
    (folder / "feedback").mkdir()
    write(folder / "feedback/train.jsonl", PAIRS[:24])
    noises = [0.0, 0.1, 0.2, 0.5, 0.0, 0.1, 0.2, 0.5]
    tests = [row | {"noise": noise} for row, noise in zip(PAIRS[24:], noises, strict=True)]
    write(folder / "feedback/test.jsonl", tests)
    more = {"dataset_name": str(folder / "feedback"), "test_fraction": 0.0, "max_steps": 1}
    summary = train("dpo", folder, "run", **more)
    assert summary["accuracy_ceiling"] == pytest.approx(1 - 1.6 / 8)


def test_kto_tells_desirable_from_undesirable_from_pairs_or_single_rows(folder: Path) -> None:
    single = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in PAIRS
        for side in ("chosen", "rejected")
    ]
    write(folder / "single.jsonl", single)
    for name in ("rows", "single"):
        summary = train("kto", folder, name + "-run", dataset_name=str(folder / f"{name}.jsonl"))
        assert files(folder / f"{name}-run") == WHOLE
        rows = read_jsonl(folder / f"{name}-run/samples.jsonl")
        assert len(rows) == 16
        assert {row["completion"].split()[1] for row in rows if row["label"]} == {"happy"}
        assert summary["auc"] == 1.0
        liked = [row["score"] for row in rows if row["label"]]
        disliked = [row["score"] for row in rows if not row["label"]]
        means = sum(liked) / len(liked) - sum(disliked) / len(disliked)
        assert summary["margin"] == pytest.approx(means)
        assert summary["margin"] > 0.1
        text = rows[0]["prompt"], rows[0]["completion"]
        ratio = logp(folder / f"{name}-run/final", *text) - logp(folder / "tiny", *text)
        assert rows[0]["score"] == pytest.approx(0.1 * ratio, abs=1e-5)
    page = (folder / "rows-run/report.html").read_text(encoding="utf-8")
    assert "A desirable test completion was raised above an undesirable one in 100.0" in page
    assert ">Reference point<" in page


def test_kto_mixes_the_sides_of_pairs(folder: Path) -> None:
    # TRL's helper puts all chosen rows before all rejected ones, and its sampler keeps that order.
    script = kto.KTOArguments(dataset_name=str(folder / "rows.jsonl"))
    labels = list(kto.load_unpaired(script, seed=1).train["label"])
    assert len(labels) == 64
    assert all(4 <= sum(labels[start : start + 16]) <= 12 for start in range(0, 64, 16))
    again, other = (list(kto.load_unpaired(script, seed).train["label"]) for seed in (1, 2))
    assert again == labels != other


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stopped_run_resumes_to_the_same_weights(recipe: str, folder: Path) -> None:
    from safetensors.torch import load_file

    keep = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    train(recipe, folder, "whole", **keep)
    train(recipe, folder, "cut", **keep)
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(folder / "cut" / name)
    (folder / "cut/summary.json").unlink()
    train(recipe, folder, "cut", **keep, resume=True)
    again = load_file(folder / "cut/final/model.safetensors")
    for name, weight in load_file(folder / "whole/final/model.safetensors").items():
        assert torch.equal(again[name], weight)
    assert read_jsonl(folder / "cut/samples.jsonl") == read_jsonl(folder / "whole/samples.jsonl")


@pytest.mark.parametrize(
    ("recipe", "values", "text"),
    [
        ("dpo", {"dataset_name": "prompts.jsonl"}, "column 'chosen' is missing"),
        ("dpo", {"global_batch_size": 12}, "global_batch_size=12: not a multiple of 8"),
        ("dpo", {"loss_type": ["exo_pair"]}, "Label smoothing must be greater than 0.0"),
        ("dpo", {"dataset_name": "chat.jsonl"}, "messages were given, but the model's tokenizer"),
        (
            "kto",
            {"dataset_name": "labels.jsonl"},
            "column 'label' has 'yes', which must be true or",
        ),
        ("kto", {"dataset_name": "prompts.jsonl"}, "column 'completion' is missing"),
        ("kto", {"per_device_train_batch_size": 1}, "batch size must be > 1"),
    ],
)
def test_mistakes_are_one_sentence_with_exit_code_2_and_leave_no_run(
    recipe: str,
    folder: Path,
    values: dict[str, Any],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import yaml

    (folder / "tiny/chat_template.jinja").unlink()
    user = [{"role": "user", "content": "tell"}]
    one, other = ([{"role": "assistant", "content": word}] for word in ("happy", "sad"))
    write(folder / "chat.jsonl", [{"prompt": user, "chosen": one, "rejected": other}])
    write(folder / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    write(folder / "labels.jsonl", [{"prompt": "a", "completion": "b", "label": "yes"}])
    if "dataset_name" in values:
        values |= {"dataset_name": str(folder / values["dataset_name"]), "test_fraction": 0.0}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values_of(folder, "run", **values)))
    assert launch(recipe, ["--config", str(path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"rlhf {recipe}: error: ")
    assert text in said
    assert not list((folder / "run").glob("*"))
