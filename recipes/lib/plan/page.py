"""The page that `rlhf plan` prints: a table of phases and things, a verdict, advice, refusals."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.lib.plan.advice import Change
from recipes.lib.plan.breakdown import GIB, THINGS, Plan, memory_text
from recipes.lib.plan.refusals import REFUSALS, Refusal

WIDTH = 80
INDENT = "  "


def show_plan(plan: Plan) -> None:
    """Print the table and where the peak is.

    Args:
        plan: The plan.
    """
    console = _console()
    console.print()
    console.print(Text(f"rlhf {plan.recipe}, {plan.model}", style="bold"), overflow="fold")
    console.print(_facts(plan))
    console.print()
    console.print(_table(plan))
    peak = plan.fullest
    console.print(f"peak: {memory_text(peak.total)} on the card, in {peak.name}", highlight=False)


def show_verdict(plan: Plan, memory: int) -> None:
    """Print whether the run fits.

    Args:
        plan: The plan.
        memory: Bytes of the card.
    """
    left = memory - plan.peak
    words = (
        f"fits in {memory_text(memory)}: {memory_text(left)} are left"
        if left >= 0
        else (f"does not fit in {memory_text(memory)}: {memory_text(-left)} are missing")
    )
    _console().print(Text(words, style="green" if left >= 0 else "red"))


def show_advice(changes: list[Change], fits: bool, memory: int) -> None:
    """Print the advice.

    Args:
        changes: What to change, in order.
        fits: Whether the run fits with all of it.
        memory: Bytes of the card.
    """
    lines = ["what makes it fit, the cheapest first:" if fits else "what makes it smaller:"]
    for number, change in enumerate(changes, 1):
        lines.append(f"{number:>2}. {change.flag}  -> {memory_text(change.peak)}")
        lines += _wrap(change.cost, INDENT * 2, INDENT * 2, break_on_hyphens=True)
    lines.append("all together:" if fits else f"and still more than {memory_text(memory)}:")
    flags = " ".join(change.flag for change in changes)
    lines += _wrap(flags, INDENT, INDENT, width=WIDTH - 2, break_long_words=False)
    if not changes:
        lines = [
            "nothing that is known here makes it smaller; take a smaller model or a larger card"
        ]
    console = _console()
    console.print()
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _wrap(text: str, first: str, others: str, **how: Any) -> list[str]:
    how = {"width": WIDTH, "break_on_hyphens": False} | how
    return textwrap.wrap(text, initial_indent=first, subsequent_indent=others, **how)


def show_refused(refused: list[tuple[Refusal, str]]) -> None:
    """Print why a run would be refused at its start, and the ways out.

    Args:
        refused: Lines of the table, each with what is wrong in keys and values.
    """
    console = _console()
    console.print()
    console.print(Text("will be refused before anything loads:", style="red"))
    for line, wrong in refused:
        for words in (wrong, f"  {line.reason}", f"  way out: {line.remedy}"):
            for row in _wrap(words, INDENT, INDENT * 2):
                console.print(Text(row), soft_wrap=True)


def show_table() -> None:
    """Print the whole table of what does not go with several processes; see `refusals`."""
    table = Table(box=None, padding=(0, 2, 1, 0))
    for name, width in (("what does not go", 18), ("what would happen", 26), ("way out", 28)):
        table.add_column(name, width=width, header_style="cyan")
    for line in REFUSALS:
        table.add_row(line.name, line.reason, line.remedy)
    _console().print(table)


def _console() -> Console:
    console = Console(highlight=False)
    console.width = min(WIDTH, console.width)
    return console


def _facts(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    share = 100 * plan.trainable / max(1, plan.parameters)
    weights = f"{plan.parameters:,}, of which {plan.trainable:,} are trained"
    table.add_row("weights", weights if share < 100 else f"{plan.trainable:,}, all trained")
    for name, value in plan.facts.items():
        table.add_row(name, Text(value))
    return table


def _table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("GiB", no_wrap=True, header_style="cyan")
    for phase in plan.phases:
        table.add_column(phase.name, justify="right", no_wrap=True, header_style="cyan")
    for thing in THINGS:
        sizes = [phase.of(thing) for phase in plan.phases]
        if any(sizes):
            table.add_row(thing, *(_cell(size) for size in sizes))
    table.add_row()
    allocated = [_cell(phase.allocated) for phase in plan.phases]
    table.add_row("tensors", *allocated, style="dim")
    totals = [
        Text(_cell(phase.total), style="bold" if phase is plan.fullest else "")
        for phase in plan.phases
    ]
    table.add_row("on the card", *totals)
    return table


def _cell(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "-"
