"""What becomes of rows that cannot be used: they are refused, or dropped and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recipes.lib.errors import UserError, note

BAD_ROW_CHOICES = ("refuse", "drop")
# A column that goes with every row and says where it stands, such as "line 3 of rows.jsonl".
PLACE = "__place__"


@dataclass
class Problem:
    """One way in which rows cannot be used."""

    what: str  # completes a sentence, with the value of the first such row
    rows: list[int] = field(default_factory=list)


def places_of(rows: Any) -> Sequence[str]:
    """Where each row of a dataset stands in its file; in the dataset, where no file is known."""
    if PLACE in rows.column_names:
        return rows[PLACE][:]  # a row at a time would take long
    return [f"row {row} (counted from 0)" for row in range(len(rows))]


def named_columns(rows: Any) -> list[str]:
    """The columns of a dataset that its file has."""
    return [name for name in rows.column_names if name != PLACE]


def brief_place(place: str, source: str) -> str:
    """A place without its file, where a message names that already."""
    where, _, file = place.partition(" of ")
    return where if file in source else place


def refuse_or_drop(
    source: str, problems: Sequence[Problem], places: Sequence[str], on_bad_rows: str
) -> set[int]:
    """Refuses bad rows, or says how many are dropped.

    Args:
        source: The file, or the key and value, that the rows come from.
        problems: What was found, in the order of the first row of each.
        places: Where each of all rows stands, as of `places_of`.
        on_bad_rows: "refuse" or "drop".

    Returns:
        The rows to leave out; empty where nothing was found.

    Raises:
        UserError: There are bad rows and they are not to be dropped, or no row would be left.
    """
    if not problems:
        return set()
    firsts = [brief_place(places[problem.rows[0]], source) for problem in problems]
    if on_bad_rows != "drop":
        first = problems[0]
        others = len({row for problem in problems[1:] for row in problem.rows})
        more = f", and {others} more have other faults" if others else ""
        raise UserError(
            f"{source}: {first.what} in {len(first.rows)} of {len(places)} rows, first in "
            f"{firsts[0]}{more}; mend or remove them, or set on_bad_rows=drop."
        )
    bad = {row for problem in problems for row in problem.rows}
    told = "; ".join(
        f"{problem.what} in {len(problem.rows)}, first in {place}"
        for problem, place in zip(problems, firsts, strict=True)
    )
    if len(bad) == len(places):
        raise UserError(f"{source}: every row is bad ({told}); mend the data.")
    note(f"{source}: {len(bad)} of {len(places)} rows dropped: {told}.")
    return bad
