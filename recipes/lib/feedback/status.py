"""What a project says of itself: numbers for the summary, a table for terminal and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from recipes.lib.feedback.rows import Row, current

# passed: cannot judge; repeated, gold: share that was as before, as is right.
COLUMNS = ("who", "answers", "passed", "s each", "A first", "longer", "repeated", "gold")


def preferred(rows: Iterable[Row]) -> dict[str, int]:
    """How often each run was preferred, where people compared two; ties are left out.

    Args:
        rows: All rows of a project.

    Returns:
        Numbers of pairs by run; nothing where the completions of pairs are of one run.
    """
    wins: Counter[str] = Counter()
    for row in current(rows):
        runs = [one["run"] for one in row["completions"]]
        if row["kind"] == "pair" and row["value"] is not None and len({*runs} - {None}) == 2:
            wins.update({runs[row["value"]]: 1, runs[1 - row["value"]]: 0})
    return dict(sorted(wins.items()))


def annotator_table(told: dict[str, Any]) -> list[list[str]]:
    """One line for each annotator, under `COLUMNS`.

    Args:
        told: From `agreement.describe`.

    Returns:
        Cells; shares with their interval of 95 %.
    """
    lines = []
    for name, about in told["annotators"].items():
        seconds = about["seconds"]
        shares = [about[key] for key in ("first_shown", "longer", "consistent", "right")]
        counts = [str(about["answers"]), str(about["cannot_judge"] or "")]
        pace = "" if seconds is None else f"{seconds:.1f}"
        lines.append([name, *counts, pace, *map(_share, shares)])
    return lines


def agreement_lines(told: dict[str, Any]) -> list[str]:
    """How far annotators agree, a line for each kind of answer that several gave."""
    lines = []
    for one in told["agreement"]:
        if one["alpha"] is None:
            continue
        pairs = [
            f"kappa {pair['kappa']:.2f} of {' and '.join(pair['annotators'])}"
            for pair in one["pairs"]
            if pair["kappa"] is not None
        ]
        right = [
            f"{name} {about['estimated_accuracy'][topic]:.2f}"
            for topic in [f"{one['kind']}, {one['aspect']}"]
            for name, about in told["annotators"].items()
            if topic in about["estimated_accuracy"]
        ]
        pairs += [f"estimated right: {', '.join(right)}"] if right else []
        said = f"{one['kind']}, {one['aspect']}: alpha {one['alpha']:.2f} on {one['units']}"
        lines.append(f"{said} shared answers, {'; '.join(pairs[:9])}")
    return lines


def _share(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    low, high = (100 * found[key] for key in ("low", "high"))
    return f"{found['count'] / found['of']:.0%} {low:.0f}-{high:.0f}"
