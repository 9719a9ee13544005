"""Prints the options of a recipe from the generated table, without importing the recipe."""

import os
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from recipes.lib.config.option_table import TRAINING_RECIPES, modules_with, read_table
from recipes.lib.errors import UserError

ALL_FLAGS = {"--help_all", "--help-all"}
HELP_FLAGS = {"-h", "--help", *ALL_FLAGS}
WIDTH = 80
SHORT = 200  # characters of an inherited option's text; --help_all shows the whole

# Those of the trainer's own options that runs commonly set; the others wait for --help_all.
COMMON = frozenset(
    "output_dir max_steps num_train_epochs per_device_train_batch_size per_device_eval_batch_size "
    "gradient_accumulation_steps gradient_checkpointing learning_rate lr_scheduler_type "
    "warmup_steps weight_decay max_grad_norm optim bf16 fp16 use_cpu seed logging_steps "
    "eval_strategy eval_steps save_strategy save_steps save_total_limit load_best_model_at_end "
    "resume_from_checkpoint report_to run_name push_to_hub hub_model_id log_level".split()
)
TITLES = {"model": "model and adapters", "training": "training (common options)"}


def print_help(recipe: str, argv: list[str]) -> bool:
    """Prints the help of a recipe if it is asked for and the table knows the recipe.

    Args:
        recipe: Name of the recipe.
        argv: The words after it.

    Returns:
        Whether it was printed.
    """
    if not HELP_FLAGS & set(argv) or recipe not in (table := read_table())["recipes"]:
        return False
    print_text(render(recipe, table, everything=bool(ALL_FLAGS & set(argv))))
    return True


def print_text(text: str) -> None:
    """Prints a long text; a reader that closes early, such as `head`, is no error.

    Args:
        text: The lines.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would try to flush again on exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def answer(
    command: str, text: str, argv: list[str] | None, act: Callable[[list[str]], int | None]
) -> int:
    """Run a command that is no recipe.

    Args:
        command: Its name.
        text: Its help.
        argv: The words after its name; None takes them from `sys.argv`.
        act: Does what the words say; its result is the exit code, None for 0.

    Returns:
        The exit code; 2 for a mistake of the user, 130 for an interrupt.
    """
    argv = sys.argv[1:] if argv is None else argv
    if HELP_FLAGS & set(argv):
        print_text(text)
        return 0
    try:
        return act(argv) or 0
    except UserError as error:
        print(f"rlhf {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"rlhf {command}: interrupted", file=sys.stderr)
        return 130


def columns(rows: dict[str, str], indent: str = "") -> list[str]:
    """Names with a text beside each, as lines of at most 80 columns where words allow it."""
    width = max((len(indent + name) for name in rows), default=0) + 2
    lines = []
    for name, text in rows.items():
        first, *more = textwrap.wrap(text, max(WIDTH - width, 30)) or [""]
        lines.append(f"{indent + name:<{width}}{first}".rstrip())
        lines += [" " * width + line for line in more]
    return lines


def render(recipe: str, table: dict[str, Any], everything: bool) -> str:
    """Writes the help of a recipe.

    Args:
        recipe: Name of the recipe.
        table: From `read_table`.
        everything: Also the options that are rarely needed, and all texts in full.

    Returns:
        Lines of at most 80 columns where words allow it.
    """
    entry = table["recipes"][recipe]
    options = [table["common"][o] if isinstance(o, str) else o for o in entry["options"]]
    positional = f" {entry['positional']['shown']}" if entry["positional"] else ""
    usage = f"usage: rlhf {recipe}{positional} [--config FILE] [--key value ...]"
    lines = [*textwrap.wrap(usage, WIDTH, subsequent_indent=" " * 12), ""]
    lines += textwrap.wrap(modules_with({"main"})[recipe], WIDTH)
    lines += [
        "",
        "  --config FILE",
        "      YAML file with any of the keys below; flags win over it.",
    ]
    if recipe in TRAINING_RECIPES:
        lines += [
            "  --accelerate_config NAME|FILE",
            "      Start it on several processes: cpu, ddp, fsdp2, zero2, zero3, multi_node",
            "      or a file; --num_processes, --num_machines, ... go with it.",
        ]
    hidden = 0
    for group in _order(recipe, options):
        members = [option for option in options if option["group"] == group]
        shown = [o for o in members if everything or group != "training" or o["name"] in COMMON]
        hidden += len(members) - len(shown)
        title = f"method ({group})" if group.endswith("Config") else group
        lines += ["", f"{TITLES.get(group, title)}:"]
        for option in shown:
            lines += _lines(option, full=everything or group in (recipe, "data", "run folder"))
    if hidden:
        lines += ["", f"{hidden} more options of the trainer: rlhf {recipe} --help_all"]
    return "\n".join(lines)


def _order(recipe: str, options: list[dict[str, Any]]) -> list[str]:
    groups = list(dict.fromkeys(option["group"] for option in options))
    last = ("data", "model", "run folder", "training")
    method = [group for group in groups if group != recipe and group not in last]
    return [group for group in (recipe, *method, *last) if group in groups]


def _lines(option: dict[str, Any], full: bool) -> list[str]:
    words = option["type"]
    text = option["help"] if full else _shorten(option["help"])
    if len(words) > 40:
        text = f"{text} One of: {words.replace('|', ', ')}."
        words = "TEXT"
    if option["default"] is not None:
        default = option["default"]
        text += " Required." if default == "required" else f" Default: {default}."
    indent = " " * 6
    body = textwrap.wrap(
        text.strip(), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    return [f"  --{option['name']} {words}", *body]


def _shorten(text: str) -> str:
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`])", text):
        if kept and len(kept) + len(sentence) > SHORT:
            break
        kept = f"{kept} {sentence}".strip()
    return kept
