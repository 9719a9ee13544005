"""The feedback row: one answer of one annotator on one item, as a plain dictionary.

`completions` stands in one order for all, `shown_order` is the one in which they were shown, and
`value` counts by the former. Null with weight 0 is "cannot judge", or an answer taken back.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from recipes.lib.data.row_checks import brief, value_fault
from recipes.lib.errors import UserError

Row = dict[str, Any]

VERSION = 1
KINDS = ("pair", "rank", "rating", "thumb", "edit", "text")
SOURCES = ("human", "simulated", "model", "implicit")
# Completions of an answer: at least, at most.
NUM_COMPLETIONS = {"pair": (2, 2), "rank": (2, 99), "text": (0, 99)}


def item_id(prompt: Any, contents: Sequence[Any]) -> str:
    """The name of an item, which follows from what is to be judged.

    Args:
        prompt: Text or messages.
        contents: The completions, as texts or messages, in their stored order.

    Returns:
        16 hexadecimal digits.
    """
    return _digest([prompt, *contents])


def as_completions(contents: Iterable[Any]) -> list[Row]:
    """Texts and messages as mappings of content and run, where they are none yet."""
    return [{"run": None} | (c if isinstance(c, dict) else {"content": c}) for c in contents]


def without_halves(value: Any) -> Any:
    """JSON without halves of characters, which no file and no tokenizer takes."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def make_row(
    item: Row, *, kind: str, value: Any, annotator: str, source: str, **others: Any
) -> Row:
    """Make a feedback row.

    Args:
        item: id, prompt and completions; thumb, rating and edit are about a single completion.
        kind: One of `KINDS`.
        value: The answer: index of the better one or None for a tie; ranks, 1 the best; number;
            true or false; the new text.
        annotator: Name of whoever answered.
        source: One of `SOURCES`.
        **others: shown_order (indexes in the order in which they were shown), aspect, strength (1,
            slightly better, to 3), weight in training (0 for what is implicit), noise (probability
            that a simulated answer contradicts the scores), seconds from showing to answering,
            reason in words, supersedes (id of the row that it stands for from now on), id (made of
            the content where it is not given), created_at in ISO 8601 (now).

    Returns:
        The row.

    Raises:
        UserError: As `check_row`.
    """
    given = {"version": VERSION, "item": item["id"], "prompt": item["prompt"]}
    given |= {"completions": as_completions(item["completions"]), "kind": kind, "value": value}
    given |= {"annotator": annotator, "source": source, "aspect": "overall", "weight": 1.0}
    row = dict.fromkeys(FIELDS) | given | others
    row["created_at"] = row["created_at"] or datetime.now(UTC).isoformat(timespec="milliseconds")
    row["id"] = row["id"] or _digest(row)
    check_row(row)
    return row


def current(rows: Iterable[Row]) -> list[Row]:
    """The answers that hold.

    Args:
        rows: All rows of a project.

    Returns:
        Those that no other row supersedes, without withdrawn ones and "cannot judge".
    """
    every = list(rows)
    superseded = {row["supersedes"] for row in every} - {None}
    return [
        row
        for row in every
        if row["id"] not in superseded and (row["value"] is not None or row["weight"] > 0)
    ]


def check_row(row: Any) -> None:
    """Check a row, such as one of somebody else's file.

    Args:
        row: What should be a row.

    Raises:
        UserError: It is not one; the sentence tells all fields that are wrong.
    """
    if not isinstance(row, dict):
        raise UserError(f"feedback row: {brief(row)} is no row; give an object with its fields.")
    faults = [f"{name} is missing" for name in FIELDS if name not in row]
    faults += [f"{name} is no field of a row" for name in row if name not in FIELDS]
    if not faults:
        faults = [
            f"{name}={brief(row[name])} must be {words}"
            for name, (words, holds) in FIELDS.items()
            if not holds(row[name])
        ]
    # Only of a row whose fields are good one by one can be told whether they go together.
    for name, words in () if faults else _mismatches(row):
        faults.append(f"{name}={brief(row[name])} must be {words}")
    if faults:
        name = brief(row.get("id", "without id"))
        raise UserError(f"feedback row {name}: {'; '.join(faults)}.")


def _mismatches(row: Row) -> Iterable[tuple[str, str]]:
    kind, value, number = row["kind"], row["value"], len(row["completions"])
    least, most = NUM_COMPLETIONS.get(kind, (1, 1))
    if not least <= number <= most:
        words = f"{least}" if least == most else f"{least} to {most}"
        yield "completions", f"a list of {words} for kind={kind}"
    elif row["shown_order"] is not None and sorted(row["shown_order"]) != list(range(number)):
        yield "shown_order", f"every index from 0 to {number - 1} once"
    elif value is None:
        if kind != "pair" and row["weight"] > 0:
            yield "value", f"given for kind={kind} (null is for weight 0)"
    elif not VALUES[kind][1](value, number):
        yield "value", f"{VALUES[kind][0]} for kind={kind}"
    if row["strength"] is not None and kind != "pair":
        yield "strength", f"null for kind={kind}"
    if row["source"] == "implicit" and row["weight"] == 0 and value is None:
        yield "value", "given for source=implicit"


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _is_int(value: Any, least: float = 0, most: float = math.inf) -> bool:
    return type(value) is int and least <= value <= most  # true is an int of Python's


def _is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def _is_content(value: Any) -> bool:
    return isinstance(value, str) or value_fault(value) is None  # a model may say nothing


def _are_completions(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict)
        and {*one} == {"content", "run"}
        and _is_content(one["content"])
        and (one["run"] is None or _is_name(one["run"]))
        for one in value
    )


def _is_list_of_ints(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_int, value))


def _are_ranks(value: Any, number: int) -> bool:
    return _is_list_of_ints(value) and len(value) == number and min(value) == 1


Check = Callable[..., bool]
VALUES: dict[str, tuple[str, Check]] = {
    "pair": ("the index 0 or 1, or null for a tie,", lambda value, _: _is_int(value, 0, 1)),
    "rank": ("one rank for each completion, 1 the best,", _are_ranks),
    "rating": ("a number", lambda value, _: _is_number(value)),
    "thumb": ("true or false", lambda value, _: isinstance(value, bool)),
    "edit": ("text or messages", lambda value, _: value_fault(value) is None),
    "text": ("text or messages", lambda value, _: value_fault(value) is None),
}


def _or_null(words: str, holds: Check) -> tuple[str, Check]:
    return f"{words} or null", lambda value: value is None or holds(value)


NAME = ("text that is not empty", _is_name)
FIELDS: dict[str, tuple[str, Check]] = {
    "version": (
        f"at most {VERSION} (newer rows need a newer project)",
        lambda value: type(value) is int and value == VERSION,
    ),
    "id": NAME,
    "item": NAME,
    "kind": (f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
    "prompt": ("text or messages", lambda value: value_fault(value) is None),
    "completions": ("a list of {content: text or messages, run: name or null}", _are_completions),
    "shown_order": _or_null("a list of indexes", _is_list_of_ints),
    "value": ("a value", lambda value: True),
    "aspect": NAME,
    "strength": _or_null("1, 2, 3", lambda value: _is_int(value, 1, 3)),
    "annotator": NAME,
    "source": (f"one of {', '.join(SOURCES)}", lambda value: value in SOURCES),
    "weight": ("a number of at least 0", lambda value: _is_number(value, 0)),
    "noise": _or_null("a number from 0 to 1", lambda value: _is_number(value, 0, 1)),
    "seconds": _or_null("a number of at least 0", lambda value: _is_number(value, 0)),
    "reason": _or_null("text", lambda value: isinstance(value, str)),
    "supersedes": _or_null("the id of a row", _is_name),
    "created_at": ("a time in ISO 8601", _is_time),
}
