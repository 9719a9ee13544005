"""The last words of a run: numbers, paths, and how to talk to a model that can be talked to."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from recipes.lib.recipe.main import parse
from recipes.lib.recipe.summary import chat_commands, format_number, is_chat_model, print_closing

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (3e-06, "3e-06"),
        (12345.678, "12,346"),
        (1234567, "1,234,567"),
        ([0.75, 0.8512], "[0.75, 0.8512]"),
        ("sft", None),
        (True, None),
        (None, None),
        ([1, 2, 3, 4], None),
        (["a"], None),
    ],
)
def test_numbers_are_short(value: object, text: str | None) -> None:
    assert format_number(value) == text


@pytest.fixture
def final(
    tmp_path: Path, tiny_model: "LlamaForCausalLM", tiny_tokenizer: "PreTrainedTokenizerFast"
) -> Path:
    tiny_model.save_pretrained(tmp_path / "run" / "final")
    tiny_tokenizer.save_pretrained(tmp_path / "run" / "final")
    return tmp_path / "run" / "final"


def test_a_whole_model_with_a_template_can_be_talked_to(final: Path) -> None:
    assert is_chat_model(final)


def test_without_a_template_it_cannot(final: Path) -> None:
    (final / "chat_template.jinja").unlink()
    assert not is_chat_model(final)


def test_an_adapter_cannot(final: Path) -> None:
    (final / "adapter_config.json").write_text("{}")
    assert not is_chat_model(final)


def test_a_reward_model_cannot(final: Path) -> None:
    config = json.loads((final / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (final / "config.json").write_text(json.dumps(config))
    assert not is_chat_model(final)


def test_a_folder_that_is_not_there_cannot(tmp_path: Path) -> None:
    assert not is_chat_model(tmp_path / "absent")


def test_the_commands_name_the_model_alike_and_quote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert chat_commands(Path("runs/my run/final")) == [
        "transformers serve 'runs/my run/final'",
        "transformers chat 'runs/my run/final'",
    ]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert chat_commands(Path("f"))[1] == "HF_HUB_OFFLINE=0 transformers chat f"


def test_a_run_closes_with_numbers_paths_and_commands(final: Path) -> None:
    (final.parent / "summary.json").write_text("{}")
    config = parse("sft", ["--output_dir", str(final.parent)])
    page = io.StringIO()
    summary = {"recipe": "sft", "eval_loss": 1.23456, "seconds": {"base": 30.04, "sft": 2}}
    print_closing(config, summary, Console(file=page, width=80))
    said = page.getvalue()
    assert "eval_loss" in said
    assert "1.235" in said
    assert "seconds/base" in said
    assert "30.04" in said
    assert f"summary.json  {final.parent}/summary.json\n" in said
    assert f"final         {final}/\n" in said
    assert f"  transformers serve {final}\n" in said
    assert "metrics.jsonl" not in said
