import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl
from recipes.sft import run
from tests.helpers.tiny_runs import FAST, write

SUBJECTS = ("cat", "dog", "bird", "child")


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [
        {"prompt": f"the {subject} {verb} the", "completion": f" {colour} house ."}
        for subject in SUBJECTS
        for verb in ("saw", "found", "made")
        for colour in ("red", "blue")
    ]
    write(tmp_path / "rows.jsonl", rows)
    return tmp_path


def train(folder: Path, name: str, **values: Any) -> dict[str, Any]:
    tiny = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / "rows.jsonl"),
        "test_fraction": 0.25,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "max_new_tokens": 4,
        "output_dir": str(folder / name),
    }
    given = {key: one for key, one in (FAST | tiny | values).items() if one is not None}
    return run(parse("sft", [], given))


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "final" / "model.safetensors")


def test_a_run_writes_everything_and_its_perplexity_is_that_of_its_final_model(
    folder: Path,
) -> None:
    summary = train(folder, "run")
    assert json.loads((folder / "run" / "summary.json").read_text()) == summary
    assert {p.name for p in (folder / "run").iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "final",
        "lineage.json",
        "samples.jsonl",
        "report.html",
    }
    samples = read_jsonl(folder / "run" / "samples.jsonl")
    assert len(samples) == 5
    assert set(samples[0]) == {"prompt", "reference", "completion"}
    assert summary["perplexity"] < summary["base_perplexity"]
    test = held_out(folder)
    for name, key in (("run/final", "perplexity"), ("tiny", "base_perplexity")):
        assert by_hand(folder / name, test) == pytest.approx(summary[key], rel=1e-4)


def held_out(folder: Path) -> list[dict[str, str]]:
    """The rows that no training step saw, found by their text in the samples and the data."""
    from recipes.lib.data.arguments import DataArguments
    from recipes.lib.data.loading import load_splits

    args = DataArguments(dataset_name=str(folder / "rows.jsonl"), test_fraction=0.25)
    test = load_splits(args, 1, ())[1]
    assert test is not None
    assert len(test) == 6
    return test.to_list()


def by_hand(path: Path, rows: list[dict[str, str]]) -> float:
    """Perplexity of completion tokens and EOS, one row at a time, with transformers' own loss."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = prompt + tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total += float(loss) * (len(ids) - len(prompt))
        count += len(ids) - len(prompt)
    return math.exp(total / count)


def test_two_runs_with_one_seed_are_bit_equal(folder: Path) -> None:
    first, second = train(folder, "one"), train(folder, "two")
    for name, weight in weights(folder / "one").items():
        assert torch.equal(weights(folder / "two")[name], weight)
    assert first["perplexity"] == second["perplexity"]


def test_a_stopped_run_resumes_to_the_same_weights(folder: Path) -> None:
    import shutil

    keep = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    train(folder, "whole", **keep)
    train(folder, "cut", **keep)
    # As if killed in step 5: the later checkpoint and everything written at the end are gone.
    for name in ("checkpoint-6", "final"):
        shutil.rmtree(folder / "cut" / name)
    (folder / "cut" / "summary.json").unlink()
    train(folder, "cut", **keep, resume=True)
    for name, weight in weights(folder / "whole").items():
        assert torch.equal(weights(folder / "cut")[name], weight)
    steps = [row["step"] for row in read_jsonl(folder / "cut" / "metrics.jsonl")]
    assert steps == sorted(steps)
    assert steps.count(3) == 1


def test_accumulation_does_not_change_the_result(folder: Path) -> None:
    whole = {"per_device_train_batch_size": 8, "global_batch_size": 8, "max_steps": 2}
    parts = {"per_device_train_batch_size": 1, "global_batch_size": 8, "max_steps": 2}
    train(folder, "whole", **whole)
    train(folder, "parts", **parts)
    for name, weight in weights(folder / "whole").items():
        torch.testing.assert_close(weights(folder / "parts")[name], weight, atol=1e-4, rtol=0)


def test_lora_leaves_the_base_and_its_final_folder_chains(folder: Path) -> None:
    lora = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 4}
    first = train(folder, "lora", **lora)
    assert (folder / "lora" / "final" / "adapter_config.json").is_file()
    assert first["perplexity"] < first["base_perplexity"]
    second = train(folder, "next", model_name_or_path=str(folder / "lora"), max_steps=1)
    assert second["base_perplexity"] == pytest.approx(first["perplexity"], rel=1e-4)


def test_conversations_are_rendered_with_the_chat_template(folder: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"what {subject} ?"},
                {"role": "assistant", "content": f"the {colour} {subject} ."},
            ]
        }
        for subject in SUBJECTS
        for colour in ("red", "blue", "old")
    ]
    write(folder / "chat.jsonl", rows)
    values = {"dataset_name": str(folder / "chat.jsonl"), "assistant_only_loss": True}
    summary = train(folder, "chat", **values)
    assert summary["perplexity"] < summary["base_perplexity"]
    sample = read_jsonl(folder / "chat" / "samples.jsonl")[0]
    assert sample["prompt"].startswith("what ")
    assert sample["reference"].endswith(" .")


def test_text_rows_are_continued_after_their_first_words(folder: Path) -> None:
    words = "the cat sat on the warm hill and sang with"
    rows = [{"text": f"{words} the {colour} bird ."} for colour in ("red", "blue", "old", "new")]
    write(folder / "text.jsonl", rows)
    train(folder, "text", dataset_name=str(folder / "text.jsonl"))
    sample = read_jsonl(folder / "text" / "samples.jsonl")[0]
    assert sample["prompt"] == "the cat sat on the warm hill and"
    assert sample["reference"].startswith(" sang with the")


def test_without_test_rows_there_is_no_perplexity(folder: Path) -> None:
    summary = train(folder, "run", test_fraction=0.0)
    assert set(summary) - {"num_rows_cut", "num_rows_left_out"} == {
        *("recipe", "train_loss", "seconds", "energy")
    }


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"global_batch_size": 6}, "global_batch_size=6: not a multiple of 4"),
        ({"dataset_name": "chat"}, "chat_template_path is missing: messages holds messages"),
        ({"dataset_name": "other"}, "SFT needs prompt and completion, or messages, or text"),
        ({"model_name_or_path": "nothing"}, "no such folder"),
    ],
)
def test_mistakes_are_told_and_leave_no_folder(
    folder: Path, values: dict[str, Any], text: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.chat_template = None
    (folder / "tiny" / "chat_template.jinja").unlink()
    tiny_tokenizer.save_pretrained(folder / "tiny")
    write(folder / "other", [])
    write(folder / "chat.jsonl", [{"messages": [{"role": "assistant", "content": "a"}]}] * 8)
    write(folder / "other.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}])
    if "dataset_name" in values:
        values |= {"dataset_name": str(folder / f"{values['dataset_name']}.jsonl")}
        values |= {"test_fraction": 0.0}
    if "model_name_or_path" in values:
        values = {"model_name_or_path": str(folder / values["model_name_or_path"])}
    with pytest.raises(UserError, match=text):
        train(folder, "run", **values)
    assert not (folder / "run").exists()


@pytest.mark.slow  # test_reward.py begins with SFT of the same model
def test_sft_of_a_real_story_model_lowers_its_perplexity(shared: Path, tmp_path: Path) -> None:
    summary = run(
        parse(
            "sft",
            [],
            FAST
            | {
                "model_name_or_path": str(shared / "models" / "stories260K"),
                "dataset_name": str(shared / "data" / "sft" / "tinystories_pc.jsonl"),
                "test_fraction": 0.1,
                "max_length": 512,
                "max_steps": 14,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-3,
                "warmup_steps": 4,
                "output_dir": str(tmp_path / "run"),
            },
        )
    )
    print(f"perplexity {summary['base_perplexity']:.3f} -> {summary['perplexity']:.3f}")
    assert 4 < summary["base_perplexity"] < 8  # a model that was trained on such stories
    assert summary["perplexity"] < 0.95 * summary["base_perplexity"]


def test_a_short_run_has_a_curve_and_hears_what_never_happens(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {"learning_rate": 500.0, "max_grad_norm": 0}
    train(folder, "run", logging_steps=None, max_steps=8, warmup_steps=20, **wild)
    rows = [row for row in read_jsonl(folder / "run/metrics.jsonl") if "loss" in row]
    assert len(rows) == 8
    said = capsys.readouterr().err
    assert "warmup_steps=20: the run has 8 steps, and its learning rate never arrives" in said
    assert "at the end it is above that of guessing (4.11)" in said
    train(folder, "asked", logging_steps=5, max_steps=8, warmup_steps=0.5)
    rows = [row for row in read_jsonl(folder / "asked/metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [5, 8]  # the last steps, too
    assert "never arrives" not in capsys.readouterr().err
