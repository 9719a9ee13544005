"""The last words of a run: its numbers, the paths it wrote, and what to do with the result."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recipes.lib.config.parse import Config
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.folder import folder_of

WRITTEN = ("report.html", "summary.json", "metrics.jsonl", "config.yaml", "final")
# What stands in a next command for what only the user has.
PAIRS, PROMPTS, REWARD, MODEL = "pairs.jsonl", "prompts.jsonl", "rewards.py:score", "MODEL"
# Keys that say which rows a run had, and which of them it held out.
DATA_KEYS = (
    "dataset_name dataset_config dataset_revision dataset_format columns datasets "
    "dataset_train_split dataset_test_split test_dataset_name test_fraction".split()
)


def print_closing(config: Config, summary: dict[str, Any], console: Console | None = None) -> None:
    """Prints the closing table of a run; of `rlhf data`, which has a page, the next commands alone.

    Args:
        config: What the run ran with.
        summary: What it returned.
        console: Where to print; standard output by default.
    """
    console = console or Console(highlight=False)
    if config.recipe != "data":
        _print_run(console, config, summary)
    commands = next_commands(config, summary)
    used = [word for word in (PAIRS, PROMPTS, REWARD, MODEL) if any(word in c for c in commands)]
    if commands:
        _print_line(console, f"Next{', with your ' if used else ''}{', '.join(used)}:")
    for words in commands:
        _print_line(console, f"  {shlex.join(words)}")


def _print_run(console: Console, config: Config, summary: dict[str, Any]) -> None:
    folder = folder_of(config)
    console.print()
    console.print(_numbers_table(config.recipe, summary))
    for warning in summary.get("warnings", []):
        _print_line(console, f"Warning at step {warning['step']}: {warning['message']}")
    for name in WRITTEN:
        if (path := folder / name).exists():
            _print_line(console, f"{name:<14}{path}{os.sep if path.is_dir() else ''}")
    if is_chat_model(folder / "final"):
        _print_line(console, "Talk to it (needs: pip install 'transformers[serving]'):")
        for command in chat_commands(folder / "final"):
            _print_line(console, f"  {command}")


def next_commands(config: Config, summary: dict[str, Any]) -> list[list[str]]:
    """Gives the words of the commands that go on from a run, at most three.

    Args:
        config: What the run ran with.
        summary: What it returned.
    """
    recipe, script, training = config.recipe, config.script, config.training
    given = {key: config.values[key] for key in DATA_KEYS if config.values.get(key) is not None}
    rows = {key: one if isinstance(one, str) else json.dumps(one) for key, one in given.items()}
    start = getattr(config.model or script, "model_name_or_path", None) or MODEL
    if recipe == "data":
        rows = ({} if summary["num_test"] else {"test_fraction": "0.1"}) | rows
        return [_train(name, start, **rows) for name in summary["recipes"][:3]]
    here = str(folder_of(config))
    if recipe == "base":
        return [_train("sft", here, dataset_name=f"{here}/data/sft_train.jsonl")]
    if recipe == "feedback":
        return [_train(name, start, dataset_name=here) for name in ("reward", "dpo")]
    if recipe == "evaluate":
        asked = {"judge": script.judge, "dataset_name": PROMPTS, "test_fraction": 0.1}
        return [_command("feedback", "simulate", model_name_or_path=script.run, **asked)]
    if recipe == "reward":
        return [_train("ppo", start, reward_funcs=here, dataset_name=PROMPTS)]
    if recipe == "quickstart":
        return [["rlhf", "configs"], ["rlhf", "data", PAIRS]]
    contest = {"baseline": start, "judge": getattr(script, "reward_funcs", [REWARD])[0]}
    if recipe == "sft":
        return [
            _train("reward", here, dataset_name=PAIRS, test_fraction=0.1),
            _train("ppo", here, dataset_name=PROMPTS),
            _command("evaluate", here, **contest, dataset_name=PROMPTS),
        ]
    if "test_fraction" in rows:
        rows["seed"] = training.seed  # the same rows are held out
    if hasattr(training, "max_completion_length"):
        rows["max_completion_length"] = training.max_completion_length
    return [_command("evaluate", here, **contest, **rows)]


def _train(recipe: str, model: str, **flags: Any) -> list[str]:
    if recipe in ("ppo", "rloo", "grpo"):
        flags = {"reward_funcs": REWARD} | flags
    return _command(recipe, model_name_or_path=model, **flags)


def _command(recipe: str, *words: str, **flags: Any) -> list[str]:
    pairs = ((f"--{key}", str(value)) for key, value in flags.items())
    return ["rlhf", recipe, *words, *(word for pair in pairs for word in pair)]


def is_chat_model(folder: Path) -> bool:
    """Says whether a folder holds a whole causal language model with a chat template.

    Args:
        folder: The `final/` of a run.

    Returns:
        False for an adapter, a reward model, or a tokenizer without a template.
    """
    config = read_json(folder / "config.json")
    names = config.get("architectures") or [""]
    if not names[0].endswith("ForCausalLM") or (folder / "adapter_config.json").exists():
        return False
    if (folder / "chat_template.jinja").exists():
        return True
    return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))


def format_number(value: Any) -> str | None:
    """Formats a scalar, or a short list of scalars, for the table.

    Args:
        value: A value of the summary.

    Returns:
        At most four significant digits after the leading ones; None for what is not shown.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list) and 0 < len(value) <= 3:
        parts = [format_number(item) for item in value]
        return None if None in parts else f"[{', '.join(map(str, parts))}]"
    return None


def _numbers_table(recipe: str, summary: dict[str, Any]) -> Table:
    table = Table(title=f"rlhf {recipe}", title_justify="left", min_width=40)
    table.add_column("result", overflow="fold")
    table.add_column("value", justify="right")
    for key, value in summary.items():
        items = {key: value}
        if isinstance(value, dict):
            items = {f"{key}/{name}": item for name, item in value.items()}
        for name, item in items.items():
            if (text := format_number(item)) is not None:
                table.add_row(name, text)
    return table


def _print_line(console: Console, text: str) -> None:
    # Never wrapped: paths and commands are there to be copied.
    console.print(text, soft_wrap=True, markup=False)


def chat_commands(folder: Path) -> list[str]:
    """Gives the two commands that serve a model and chat with it.

    Args:
        folder: A folder that `from_pretrained` loads.

    Returns:
        Shell commands, for two terminals in the same folder: both must name the model alike.
    """
    name = shlex.quote(str(folder))
    # Offline, the Hub's client refuses to talk even to this machine.
    online = "HF_HUB_OFFLINE=0 " if os.environ.get("HF_HUB_OFFLINE") else ""
    return [f"transformers serve {name}", f"{online}transformers chat {name}"]
