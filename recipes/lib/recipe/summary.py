"""The last words of a run: its numbers, the paths it wrote, and what to do with the result."""

import json
import os
import re
import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from recipes.lib.config.parse import Config
from recipes.lib.runs.folder import folder_of

WRITTEN = (
    *("report.html", "summary.json", "metrics.jsonl", "config.yaml", "final"),
    *("model.gguf", "adapter.gguf", "Modelfile"),
)
TABLES = ("checkpoints", "ranking", "rounds")  # of a summary, a row for each model
# What follows from a run of each recipe; of the others a comparison.
NEXT = {
    "base": ["sft {on_it} --dataset_name {it}/data/sft_train.jsonl"],
    "sft": [
        "chat {it}",
        "reward {on_it} --dataset_name pairs.jsonl --test_fraction 0.1",
        "ppo {on_it} --reward_funcs rewards.py:score --dataset_name prompts.jsonl",
    ],
    "feedback": ["reward {on_start} --dataset_name {it}", "dpo {on_start} --dataset_name {it}"],
    "reward": ["ppo {on_start} --reward_funcs {it} --dataset_name prompts.jsonl"],
    "evaluate": [
        "feedback simulate {on_it} --judge {judge} --dataset_name prompts.jsonl --test_fraction 0.1"
    ],
    "classify": [
        "ppo --model_name_or_path MODEL --reward_funcs {it}:{label} --dataset_name prompts.jsonl",
        "push {it} --repo NAME",
    ],
    "compare": ["chat {it}", "runs"],
    "quickstart": ["chat {it}/ppo", "configs", "data pairs.jsonl"],
    "rounds": ["chat {promoted}", "push {promoted} --repo NAME"],
    "merge": ["chat {made}", "push {made} --repo NAME"],
    "merge of a reward model": [
        "ppo {on_start} --reward_funcs {made} --dataset_name prompts.jsonl",
        "push {made} --repo NAME",
    ],
    "export": ["chat {it}"],
    "data": ["{recipe} {on_start} {rows}"],
}
COMPARISON = ["evaluate {it} --baseline {start} --judge {judge} {rows}", "chat {it}"]
# What stands in them for what only the user has.
REWARD = "rewards.py:score"
STAND_INS = ("pairs.jsonl", "prompts.jsonl", REWARD, "MODEL")
# Keys that say which rows a run had, and which of them it held out.
DATA_KEYS = (
    "dataset_name dataset_config dataset_revision dataset_format columns datasets "
    "dataset_train_split dataset_test_split test_dataset_name test_fraction on_bad_rows".split()
)


def print_closing(config: Config, summary: dict[str, Any], console: Console | None = None) -> None:
    """Prints the closing table of a run; of `rlhf data`, which has a page, the next commands alone.

    Args:
        config: What the run ran with.
        summary: What it returned.
        console: Where to print; standard output by default.
    """
    asks = getattr(config.script, "action", None) in ("sample", "import", "status", "forget")
    asks = asks or getattr(config.script, "status", False)
    if config.recipe in ("chat", "push", "check") or asks:
        return
    console = console or Console(highlight=False)
    if config.recipe != "data":
        print_run(config, summary, console)
    commands = next_commands(config, summary)
    used = [word for word in STAND_INS if any(word in command for command in commands)]
    _print_line(console, f"Next{', with your ' if used else ''}{', '.join(used)}:")
    for command in commands:
        _print_line(console, f"  {command}")


def print_run(config: Config, summary: dict[str, Any], console: Console | None = None) -> None:
    """Prints the numbers of a run and where its files are.

    Args:
        config: What the run ran with.
        summary: What it returned.
        console: Where to print; standard output by default.
    """
    console, folder = console or Console(highlight=False), folder_of(config)
    console.print()
    console.print(_numbers_table(config.recipe, summary))
    for key in TABLES:
        if rows := summary.get(key):
            best = f", best {summary['best_checkpoint']}" if key == "checkpoints" else ""
            console.print(_rows_table(f"{key}{best}", rows))
    for warning in summary.get("warnings", []):
        _print_line(console, f"Warning at step {warning['step']}: {warning['message']}")
    for name in WRITTEN:
        if (path := folder / name).exists():
            _print_line(console, f"{name:<14}{path}{os.sep if path.is_dir() else ''}")


def next_commands(config: Config, summary: dict[str, Any]) -> list[str]:
    """Gives the commands that go on from a run, with its paths.

    Args:
        config: What the run ran with.
        summary: What it returned.

    Returns:
        At most three, for a shell.
    """
    script, training, given = config.script, config.training, config.values
    is_data = config.recipe == "data"
    rows = {key: given[key] for key in DATA_KEYS if given.get(key) is not None}
    if "test_fraction" in rows and training is not None:
        rows["seed"] = training.seed  # the same rows are held out
        drops = config.recipe in ("dpo", "kto") and script.on_bad_rows == "drop"
        if drops or script.streaming:  # others would be
            rows = {"dataset_name": "prompts.jsonl"}
    if is_data and not summary["num_test"]:
        rows["test_fraction"] = 0.1
    if getattr(training, "max_completion_length", None):
        rows["max_completion_length"] = training.max_completion_length
    texts = {key: one if isinstance(one, str) else json.dumps(one) for key, one in rows.items()}
    flags = shlex.join(word for key, one in texts.items() for word in (f"--{key}", one))
    judge = getattr(script, "judge", None) or getattr(script, "reward_funcs", None) or [REWARD]
    names = {
        "start": getattr(config.model or script, "model_name_or_path", None)
        or next(iter(getattr(script, "names", ())), "MODEL"),
        "it": getattr(script, "run", None)
        or getattr(script, "checkpoints", None)
        or next(iter(getattr(script, "runs", ())), None)
        or ("" if is_data else folder_of(config)),
        "made": "" if is_data else folder_of(config),
        "judge": judge if isinstance(judge, str) else judge[0],
        "promoted": summary.get("promoted"),
        "label": (summary.get("labels") or [""])[-1],
    }
    quoted = {name: shlex.quote(str(value)) for name, value in names.items()}
    quoted |= {f"on_{name}": f"--model_name_or_path {quoted[name]}" for name in ("start", "it")}
    own = "merge of a reward model" if "scores_spread" in summary else config.recipe
    if getattr(script, "environment", None) or getattr(script, "tools", None):
        return [f"rlhf chat {quoted['it']}"]  # no other command plays turns
    if getattr(script, "reads_pictures", False) and training is not None:
        return [f"rlhf push {quoted['it']} --repo NAME"]  # others ask without pictures
    made = []
    for recipe in summary["recipes"][:3] if is_data else [""]:
        asked = f" --reward_funcs {REWARD}" if recipe in ("ppo", "rloo", "grpo") else ""
        for line in NEXT.get(own, COMPARISON):
            made.append(f"rlhf {line.format(**quoted, recipe=recipe, rows=flags + asked)}")
    return made


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


def _rows_table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    columns = [key for key in [*rows.values()][-1] if not key.endswith("_stderr")]
    for key in ("", *columns):  # of a judge the last part of its name
        name, left = re.split("[/:]", key)[-1].replace("_", " "), not key
        table.add_column(name, justify="left" if left else "right", no_wrap=left, overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *(_cell(row.get(key)) for key in columns))
    return table


def _cell(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else format_number(value) or ""


def _print_line(console: Console, text: str) -> None:
    # Never wrapped: paths and commands are there to be copied.
    console.print(text, soft_wrap=True, markup=False)
