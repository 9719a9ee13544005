"""The last words of a run: its numbers, the paths it wrote, and how to talk to the result."""

import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recipes.lib.config.parse import Config
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.folder import folder_of

WRITTEN = "report.html summary.json metrics.jsonl config.yaml final".split()
WRITTEN += "model.gguf adapter.gguf Modelfile".split()
PAGES = {"data"}  # recipes that print a page of their own


def print_closing(config: Config, summary: dict[str, Any], console: Console | None = None) -> None:
    """Prints the closing table of a run.

    Args:
        config: What the run ran with.
        summary: What it returned.
        console: Where to print; standard output by default.
    """
    if config.recipe in PAGES:
        return
    folder = folder_of(config)
    console = console or Console(highlight=False)
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
