"""The page that `rlhf data` prints: facts, a plot of lengths, rows with their loss mask.

A row is shown as the tokens that a model sees, or as text where there is no tokenizer.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.lib.data.file_rows import Row
from recipes.lib.data.formats import Format
from recipes.lib.data.lengths import LengthBin
from recipes.lib.data.prompts import prompt_text
from recipes.lib.data.tokenization import Tokens, loss_segments, tokenize_row
from recipes.lib.errors import UserError, visible
from recipes.lib.models.chat_template import check_template

WIDTH = 80
BAR = "\u2588"
HALF_BAR = "\u258c"
LINE_END = "\u21b5"
MAX_LINES = 6  # of one piece of a row
GUTTER = 9


@dataclass(frozen=True)
class Example:
    """One sequence of a row, in pieces with and without loss."""

    title: str
    pieces: list[tuple[str, str]]  # what it is ("context", "LOSS", a role), text


@dataclass
class Page:
    """All that is to be printed."""

    title: str
    facts: dict[str, list[str]] = field(default_factory=dict)
    unit: str = "tokens"
    bins: list[LengthBin] = field(default_factory=list)
    limit: int | None = None
    examples: list[Example] = field(default_factory=list)


def show_page(page: Page) -> None:
    """Print the page, 80 columns wide at most.

    Args:
        page: What to print.
    """
    console = Console(highlight=False)
    console.width = min(WIDTH, console.width)
    console.print()
    console.print(Text(visible(page.title), style="bold"), overflow="fold")
    console.print(_facts(page.facts))
    if page.bins:
        console.print()
        console.print(_plot(page))
    for example in page.examples:
        console.print()
        console.print(Text(example.title, style="bold"))
        for kind, text in example.pieces:
            _print_piece(console, kind, text)
    console.print()


def _facts(facts: dict[str, list[str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in facts.items():
        for number, line in enumerate(lines):
            table.add_row("" if number else name, Text(visible(line)))
    return table


def _plot(page: Page) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(page.unit, justify="right", no_wrap=True, header_style="cyan")
    table.add_column("rows", justify="right", no_wrap=True, header_style="cyan")
    table.add_column("", no_wrap=True)
    most = max(one.count for one in page.bins)
    room = 44
    for one in page.bins:
        halves = round(2 * room * one.count / most)
        bar = BAR * (halves // 2) + HALF_BAR * (halves % 2)
        is_long = page.limit is not None and one.high > page.limit
        table.add_row(
            f"{one.low:,} - {one.high:,}",
            f"{one.count:,}",
            Text(bar or ("." if one.count else ""), style="yellow" if is_long else "green"),
        )
        if page.limit is not None and one.low <= page.limit <= one.high:
            table.add_row("", "", Text(f"-- max_length {page.limit:,}", style="yellow"))
    return table


def _print_piece(console: Console, kind: str, text: str) -> None:
    style = {"LOSS": "green", "context": "dim"}.get(kind, "")
    for number, line in enumerate(_lines(text, console.width - GUTTER - 2)):
        gutter = f"{kind if number == 0 else '':>{GUTTER}} "
        mark = "#" if kind == "LOSS" else "|"
        console.print(Text(gutter, style="cyan") + Text(f"{mark}{line}", style=style), no_wrap=True)


def _lines(text: str, width: int) -> list[str]:
    """Wraps a text where it is too wide; of a long one, only the beginning and the end."""
    lines: list[str] = []
    for line in visible(text).replace("\n", f"{LINE_END}\n").split("\n"):
        lines += _fold(line, width)
    if len(lines) > MAX_LINES:
        left_out = len(lines) - MAX_LINES + 1
        lines = [*lines[: MAX_LINES - 2], f"... {left_out} more lines ...", lines[-1]]
    return lines


def _fold(line: str, width: int) -> list[str]:
    if Text(line).cell_len <= width:
        return [line] if line else []
    if line.isascii():
        wrapped = textwrap.TextWrapper(width, drop_whitespace=False, replace_whitespace=False)
        return wrapped.wrap(line)
    return [str(part) for part in Text(line).wrap(Console(width=width), width, overflow="fold")]


def token_rows(row: Row, shape: Format, tokenizer: Any, assistant_only_loss: bool) -> list[Tokens]:
    """Tokenize a row, with a chat template's complaint as a sentence.

    Args:
        row: A good row.
        shape: Its format.
        tokenizer: The model's.
        assistant_only_loss: Of messages: loss on the assistant's tokens alone.

    Returns:
        As `tokenize_row`.

    Raises:
        UserError: The tokenizer has no chat template, or its template refuses the messages.
    """
    from jinja2 import TemplateError

    check_template(row, shape.columns[0], tokenizer.chat_template is not None)
    try:
        return tokenize_row(row, shape, tokenizer, assistant_only_loss=assistant_only_loss)
    except TemplateError as error:
        raise UserError(
            f"chat_template_path: the chat template refuses {shape.columns[0]} ({error}); name "
            "another template, or bring the messages into the order that it wants."
        ) from error


def examples_of_row(
    place: str, row: Row, shape: Format, tokenizer: Any, assistant_only_loss: bool
) -> list[Example]:
    """One row as people read it.

    Args:
        place: Where the row stands.
        row: A good row.
        shape: Its format.
        tokenizer: The model's, or None.
        assistant_only_loss: Of messages: loss on the assistant's tokens alone.

    Returns:
        One example for each sequence that the model sees; one for the row without a tokenizer.
    """
    if tokenizer is None:
        return [Example(place, texts_of_row(row, shape))]
    found = []
    for seen in token_rows(row, shape, tokenizer, assistant_only_loss):
        named = f", {seen.name}" if seen.name else ""
        title = f"{place}{named}: {len(seen.ids):,} tokens, {sum(seen.has_loss):,} with loss"
        words = {True: "LOSS", False: "prompt" if shape.columns == ("prompt",) else "context"}
        found.append(
            Example(title, [(words[loss], text) for text, loss in loss_segments(seen, tokenizer)])
        )
    return found


def texts_of_row(row: Row, shape: Format) -> list[tuple[str, str]]:
    """The texts of a row, each with its column or role.

    Args:
        row: A good row.
        shape: Its format.

    Returns:
        Names of at most nine characters, and texts.
    """
    found: list[tuple[str, str]] = []
    for column in shape.columns:
        value = row[column]
        if column == "completions":
            pairs = zip(row["ranks"], value, strict=True)
            found += [(f"rank {rank}", prompt_text(one)) for rank, one in pairs]
        elif isinstance(value, list) and column != "ranks":
            mark = "" if column in ("prompt", "messages") else column[:8]
            found += [(mark or message["role"][:9], _content(message)) for message in value]
        elif column != "ranks":
            found.append((column[:9], str(value)))
    return found


def _content(message: Row) -> str:
    content = message.get("content")
    calls = message.get("tool_calls")
    return "\n".join(str(part) for part in (content, calls) if part)
