"""Answers that a reward model learns from, in one table: pairs, ranks, ratings and thumbs.

What a row is follows from the columns that it fills. A pair is a ranking of two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from recipes.lib.data.file_rows import Row, to_dataset

if TYPE_CHECKING:
    from datasets import Dataset

OVERALL = "overall"  # the aspect of rows that name none
# The columns that make a row one of a kind; a prompt stands before each, of a pair perhaps not.
ANSWERS = {
    "pair": ("chosen", "rejected"),
    "rank": ("completions", "ranks"),
    "rating": ("completion", "rating"),
    "thumb": ("completion", "label"),
}
COMPARISONS = ("pair", "rank")
BESIDE_ANSWERS = ("margin", "weight", "annotator", "aspect")


def answer_columns(rows: Dataset) -> list[str]:
    """The columns that rows have to fill, of answers of one kind or of several."""
    kinds = kinds_of(rows.column_names) or ["pair"]
    asked = [] if kinds == ["pair"] else ["prompt"]
    return [*asked, *dict.fromkeys(name for kind in kinds for name in ANSWERS[kind])]


def kinds_of(columns: Iterable[str]) -> list[str]:
    """The kinds of answers that columns can hold."""
    there = {*columns}
    return [kind for kind, needed in ANSWERS.items() if there.issuperset(needed)]


def kind_of(row: Row) -> str | None:
    """The kind of a row; None where it fills the columns of none."""
    return next(iter(kinds_of(name for name, value in row.items() if value is not None)), None)


def own_columns(row: Row, columns: Sequence[str]) -> Row:
    """A row of a table of several kinds without the columns that other kinds fill."""
    kinds = kinds_of(columns)
    if len(kinds) < 2 or (kind := kind_of(row)) is None:
        return row
    others = {name for one in kinds for name in ANSWERS[one]} - {*ANSWERS[kind]}
    others |= {"prompt"} if kind == "pair" and row.get("prompt") is None else set()
    return {name: value for name, value in row.items() if name not in others}


def completions_of(row: Row) -> tuple[list[Any], list[int]]:
    """The completions of a row, and their ranks where they are compared (1 is the best)."""
    kind = kind_of(row)
    if kind == "pair":
        return [row["chosen"], row["rejected"]], [1, 2]
    if kind == "rank":
        return list(row["completions"]), list(row["ranks"])
    return [row["completion"]], []


def most_completions(rows: Dataset) -> int:
    """The most completions that a row has."""
    kinds = kinds_of(rows.column_names)
    ranked = map(len, filter(None, rows["ranks"])) if "rank" in kinds else ()
    return max(2 if "pair" in kinds else 1, *ranked, 1)


def aspect_of(row: Row) -> str:
    """What of its completions a row judges."""
    return str(row.get("aspect") or OVERALL)


def value_of(row: Row) -> float:
    """The rating of a row, or 1 for a thumb up and 0 for one down."""
    return float(row["rating"] if kind_of(row) == "rating" else row["label"])


def ordered_pairs(rows: Dataset) -> Dataset | None:
    """Pairs that answers imply: accuracy is the share of these in the right order.

    Of a ranking all two of different ranks. Of ratings and thumbs all two completions of a prompt
    of which one annotator said different things about one aspect; where no prompt has such two,
    the best rated with the worst rated of all prompts, the second with the last but one, and so on.

    Args:
        rows: Answers of any kinds.

    Returns:
        Rows of prompt, chosen and rejected, with aspect, or the rows themselves where all are
        pairs; None where nothing is ordered.
    """
    if kinds_of(rows.column_names) == ["pair"]:
        return rows
    found, alone = list[Row](), defaultdict[Any, list[Row]](list)
    for row in rows:
        if (kind := kind_of(row)) in COMPARISONS:
            found += _pairs(row, *completions_of(row))
        else:
            alone[kind, aspect_of(row)].append(row)
    for said in alone.values():
        found += list(_of_one_prompt(said)) or list(_of_two_prompts(said))
    return to_dataset(found) if found else None


def _pairs(about: Row, said: Sequence[Any], ranks: Sequence[float]) -> Iterator[Row]:
    for one, other in combinations(range(len(said)), 2):
        if ranks[one] != ranks[other]:
            best, worst = sorted((one, other), key=lambda place: ranks[place])
            prompt = about.get("prompt") or said[0][:0]
            known = {"prompt": prompt, "aspect": aspect_of(about)}
            yield known | {"chosen": said[best], "rejected": said[worst]}


def _of_one_prompt(rows: list[Row]) -> Iterator[Row]:
    groups = defaultdict(list)
    for row in rows:
        groups[repr((row["prompt"], row.get("annotator")))].append(row)
    for group in groups.values():
        ranks = [-value_of(row) for row in group]
        pairs = _pairs(group[0], [row["completion"] for row in group], ranks)
        yield from (pair for pair in pairs if pair["chosen"] != pair["rejected"])


def _of_two_prompts(rows: list[Row]) -> Iterator[Row]:
    ordered = sorted(rows, key=value_of)
    for worst, best in zip(ordered, ordered[: len(ordered) // 2 - 1 : -1], strict=False):
        if value_of(worst) < value_of(best):
            said = [row["prompt"] + row["completion"] for row in (best, worst)]
            yield from _pairs(best | {"prompt": said[0][:0]}, said, [1, 2])
