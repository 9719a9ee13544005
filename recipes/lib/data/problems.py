"""What becomes of rows that cannot be used: they are refused, or dropped and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from recipes.lib.errors import UserError, note

BAD_ROW_CHOICES = ("refuse", "drop")


@dataclass
class Problem:
    """One way in which rows cannot be used."""

    what: str  # completes a sentence, with the value of the first such row
    rows: list[int] = field(default_factory=list)


def refuse_or_drop(
    source: str,
    problems: Sequence[Problem],
    total: int,
    on_bad_rows: str,
    *,
    row_word: str = "row",
) -> set[int]:
    """Refuses bad rows, or says how many are dropped.

    Args:
        source: The file, or the key and value, that the rows come from.
        problems: What was found, in the order of the first row of each.
        total: Number of all rows.
        on_bad_rows: "refuse" or "drop".
        row_word: What a row is called: "row" (counted from 0) or "line" (counted from 1).

    Returns:
        The rows to leave out; empty where nothing was found.

    Raises:
        UserError: There are bad rows and they are not to be dropped, or no row would be left.
    """
    if not problems:
        return set()
    where = " (counted from 0)" if row_word == "row" else ""
    if on_bad_rows != "drop":
        first = problems[0]
        others = len({row for problem in problems[1:] for row in problem.rows})
        more = f", and {others} more have other faults" if others else ""
        raise UserError(
            f"{source}: {first.what} in {len(first.rows)} of {total} {row_word}s, first in "
            f"{row_word} {first.rows[0]}{where}{more}; mend or remove them, or set "
            "on_bad_rows=drop."
        )
    bad = {row for problem in problems for row in problem.rows}
    told = "; ".join(
        f"{problem.what} in {len(problem.rows)}, first in {row_word} {problem.rows[0]}"
        for problem in problems
    )
    if len(bad) == total:
        raise UserError(f"{source}: every {row_word} is bad ({told}); mend the data.")
    note(f"{source}: {len(bad)} of {total} {row_word}s dropped{where}: {told}.")
    return bad
