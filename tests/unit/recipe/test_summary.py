"""The last words of a run: numbers, paths, and the commands that go on from it."""

import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from recipes.configs import run as list_configs
from recipes.lib.recipe.main import parse
from recipes.lib.recipe.summary import format_number, print_closing

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
    assert f"  rlhf chat {final.parent}\n" in said
    assert "metrics.jsonl" not in said


ROWS = {"dataset_name": "my rows.jsonl", "columns": {"prompt": "question"}, "test_fraction": 0.25}
SAMPLED: dict[str, Any] = {"model_name_or_path": "start", "reward_funcs": ["r/w", "f.py:g"]}
DATA = {"num_test": 0, "recipes": ["reward", "dpo", "kto", "sft"]}
HERE = "--model_name_or_path runs/x"
EVALUATE = "rlhf evaluate runs/x --baseline start --judge"
# Recipe, its keys, its summary, and the commands that follow.
FOLLOWING: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    (
        "base",
        {},
        {},
        [f"rlhf sft {HERE} --dataset_name runs/x/data/sft_train.jsonl"],
    ),
    (
        "sft",
        {"model_name_or_path": "start"},
        {},
        [
            "rlhf chat runs/x",
            f"rlhf reward {HERE} --dataset_name pairs.jsonl --test_fraction 0.1",
            f"rlhf ppo {HERE} --reward_funcs rewards.py:score --dataset_name prompts.jsonl",
        ],
    ),
    (
        "reward",
        {"model_name_or_path": "start"},
        {},
        ["rlhf ppo --model_name_or_path start --reward_funcs runs/x --dataset_name prompts.jsonl"],
    ),
    (
        "ppo",
        SAMPLED | ROWS | {"seed": 5, "max_completion_length": 32},
        {},
        [
            f"{EVALUATE} r/w --dataset_name 'my rows.jsonl'"
            """ --columns '{"prompt": "question"}'"""
            " --test_fraction 0.25 --seed 5 --max_completion_length 32",
            "rlhf chat runs/x",
        ],
    ),
    (
        "grpo",
        SAMPLED | {"dataset_name": "d.jsonl", "max_completion_length": 8},
        {},
        [
            f"{EVALUATE} r/w --dataset_name d.jsonl --max_completion_length 8",
            "rlhf chat runs/x",
        ],
    ),
    (
        "dpo",
        {"model_name_or_path": "start", "datasets": [{"path": "a"}, {"path": "b", "weight": 0.5}]},
        {},
        [
            f"{EVALUATE} rewards.py:score --datasets"
            ' \'[{"path": "a"}, {"path": "b", "weight": 0.5}]\'',
            "rlhf chat runs/x",
        ],
    ),
    (
        "kto",
        {"model_name_or_path": "start", "dataset_name": "d", "test_dataset_name": "t"},
        {},
        [
            f"{EVALUATE} rewards.py:score --dataset_name d --test_dataset_name t",
            "rlhf chat runs/x",
        ],
    ),
    (
        "feedback",
        {"action": "simulate", "model_name_or_path": "start", "dataset_name": "d"},
        {},
        [
            "rlhf reward --model_name_or_path start --dataset_name runs/x",
            "rlhf dpo --model_name_or_path start --dataset_name runs/x",
        ],
    ),
    (
        "evaluate",
        {"run": "runs/ppo/mine", "baseline": "b", "judge": "runs/reward/mine"},
        {},
        [
            "rlhf feedback simulate --model_name_or_path runs/ppo/mine --judge runs/reward/mine"
            " --dataset_name prompts.jsonl --test_fraction 0.1"
        ],
    ),
    (
        "data",
        {"dataset_name": "d.jsonl"},
        DATA,
        [
            f"rlhf {name} --model_name_or_path MODEL --dataset_name d.jsonl --test_fraction 0.1"
            for name in ("reward", "dpo", "kto")
        ],
    ),
    (
        "data",
        {"dataset_name": "d", "dataset_format": "hh", "model_name_or_path": "m"},
        {"num_test": 9, "recipes": ["rloo"]},
        [
            "rlhf rloo --model_name_or_path m --dataset_name d --dataset_format hh"
            " --reward_funcs rewards.py:score"
        ],
    ),
    ("quickstart", {}, {}, ["rlhf chat runs/x/ppo", "rlhf configs", "rlhf data pairs.jsonl"]),
    (
        "merge",
        {"run": "runs/ppo/mine"},
        {},
        ["rlhf chat runs/x", "rlhf push runs/x --repo NAME"],
    ),
    (
        "merge",
        {"run": "runs/reward/mine"},
        {"scores_spread": 1.0},
        [
            "rlhf ppo --model_name_or_path MODEL --reward_funcs runs/x"
            " --dataset_name prompts.jsonl",
            "rlhf push runs/x --repo NAME",
        ],
    ),
]


@pytest.mark.parametrize(("recipe", "keys", "summary", "commands"), FOLLOWING)
def test_a_run_ends_with_commands_that_parse(
    recipe: str, keys: dict[str, Any], summary: dict[str, Any], commands: list[str]
) -> None:
    folder = {} if recipe == "data" else {"output_dir": "runs/x"}
    page = io.StringIO()
    config = parse(recipe, [], keys | folder)
    print_closing(config, {"recipe": recipe} | summary, Console(file=page, width=80))
    title, *lines = page.getvalue().partition("Next")[2].splitlines()
    assert lines == [f"  {command}" for command in commands]
    for stand_in in ("pairs.jsonl", "prompts.jsonl", "rewards.py:score", "MODEL"):
        assert (stand_in in title) == any(stand_in in command for command in commands)
    for command in commands:
        rlhf, name, *words = shlex.split(command)
        assert rlhf == "rlhf"
        if name == "configs":
            assert "quickstart/ppo" in list_configs(words)
            continue
        script = parse(name, words).script
        if name in ("chat", "push"):
            assert script.run in ("runs/x", "runs/x/ppo")
            continue
        assert script.dataset_name or script.datasets
        if recipe in ("ppo", "dpo"):  # what was JSON is what it was
            assert script.columns == keys.get("columns")
            assert [part["path"] for part in script.datasets] == ["a", "b"][: 2 * (recipe == "dpo")]
