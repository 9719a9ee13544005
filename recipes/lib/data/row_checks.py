"""Checking rows in TRL's formats: every value is text or messages and says something."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from recipes.lib.data.answers import own_columns
from recipes.lib.data.file_rows import to_dataset
from recipes.lib.data.messages import odd_part
from recipes.lib.data.problems import Problem, named_columns, places_of, refuse_or_drop
from recipes.lib.errors import UserError
from recipes.lib.pictures.files import IMAGE, IMAGES, picture_fault

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected", "messages", "text")
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")  # which TRL hands to the chat template
CHECKED_COLUMNS = (*TEMPLATE_COLUMNS, "margin", "weight", "aspect")  # wherever a row has them
JUDGED = ("chosen", "ranks", "rating", "label")  # columns of rows that have a weight
OPEN_TURN = "\n\nAssistant:"  # of a transcript of hh, behind which there has to be something
LEARNED_COLUMNS = ("messages", "completion")  # of which the assistant's turns are learned
ROWS_AT_A_TIME = 1000  # rows that are decoded at a time


def check_rows(
    dataset: Dataset, required_columns: Sequence[str], name: str, on_bad_rows: str = "refuse"
) -> Dataset:
    """Check that rows have the columns and that every row can be learned from.

    Args:
        dataset: The rows.
        required_columns: Columns that every row must fill.
        name: What the messages call the data.
        on_bad_rows: "refuse" or "drop" rows with a fault.

    Returns:
        The rows; without the bad ones where those are dropped.

    Raises:
        UserError: There are no rows, a column is missing, or a row has a fault (`row_fault`).
    """
    if not len(dataset):
        raise UserError(f"{name}: no rows; give a file with at least one.")
    for column in required_columns:
        if column not in dataset.column_names:
            raise UserError(
                f"{name}: column {column!r} is missing; the columns are "
                f"{', '.join(named_columns(dataset))}. Rename the right one to {column!r}, or say "
                "what the file holds with dataset_format."
            )
    problems = find_problems(dataset, required_columns)
    bad = refuse_or_drop(name, problems, places_of(dataset), on_bad_rows)
    if not bad:
        return dataset
    kept = dataset.select([row for row in range(len(dataset)) if row not in bad])
    # Made anew: what was of mixed types with the bad rows is of one type without them.
    made = to_dataset(kept.to_list())
    for column, feature in dataset.features.items():
        if hasattr(feature, "names"):  # of classes, whose numbers alone a list has
            made = made.cast_column(column, feature)
    return made


def find_problems(dataset: Dataset, required_columns: Sequence[str]) -> list[Problem]:
    """Find the rows that cannot be learned from.

    Args:
        dataset: The rows.
        required_columns: Columns of it that every row must fill.

    Returns:
        The faults with their rows, in the order of the first row of each.
    """
    problems: dict[str, Problem] = {}
    is_text: bool | None = None  # as the first good row, by which trainers go for all rows
    beside = [name for name in CHECKED_COLUMNS if name in dataset.column_names]
    for number, row in enumerate(iterate_rows(dataset, [*required_columns, *beside])):
        row = own_columns(row, required_columns)
        found = row_fault(row)
        first = next((column for column in TEXT_COLUMNS if column in row), None)
        if found is None and first is not None:
            is_text = isinstance(row[first], str) if is_text is None else is_text
            found = kind_mismatch(row, first, is_text)
        if found is not None:
            problems.setdefault(found[0], Problem(found[1])).rows.append(number)
    return list(problems.values())


def kind_mismatch(row: dict[str, Any], column: str, is_text: bool) -> tuple[str, str] | None:
    """Say that a row holds text where others hold messages, or the other way round.

    Args:
        row: A row without a fault.
        column: Where to look.
        is_text: What the others hold.

    Returns:
        As `row_fault`.
    """
    if isinstance(row[column], str) == is_text:
        return None
    words = ("messages", "text") if is_text else ("text", "messages")
    return "other", f"column {column!r} holds {words[0]}, unlike the {words[1]} before,"


def iterate_rows(dataset: Dataset, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Go through some columns of all rows.

    Args:
        dataset: The rows.
        columns: Columns of it.

    Yields:
        Each row's values by column.
    """
    if not columns:
        yield from ({} for _ in range(len(dataset)))
        return
    for batch in dataset.select_columns(list(columns)).iter(ROWS_AT_A_TIME):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def row_fault(row: dict[str, Any]) -> tuple[str, str] | None:
    """Say what keeps a row from being learned from.

    Args:
        row: Values of the columns that it must fill.

    Returns:
        The kind of fault and the same in words with the value, or None for a good row.
    """
    spoken = [column for column in TEXT_COLUMNS if column in row]
    for column in spoken:
        what = value_fault(row[column])
        what = what or _answer_fault(column, row[column])
        if what is not None:
            return f"{column} {what[0]}", f"column {column!r} {what[1]}"
    for column in (IMAGE, IMAGES):
        if column in row and (what := picture_fault(row[column])):
            return f"{column} {what[0]}", f"column {column!r} {what[1]}"
    kinds = {isinstance(row[column], str) for column in spoken}
    if len(kinds) > 1:
        both = " and ".join(repr(column) for column in spoken)
        return "mixed", f"columns {both} mix text and messages"
    if "chosen" in row and "rejected" in row and row["chosen"] == row["rejected"]:
        return "equal", "columns 'chosen' and 'rejected' are equal"
    return (_ranks_fault(row) if "completions" in row else None) or _beside_fault(row)


def _ranks_fault(row: dict[str, Any]) -> tuple[str, str] | None:
    said, ranks = row["completions"], row["ranks"]
    if not isinstance(said, list) or len(said) < 2:
        return "completions", f"column 'completions' has {brief(said)}, which is no list of two,"
    for one in said:
        if what := value_fault(one) or _answer_fault("completion", one):
            return f"completions {what[0]}", f"column 'completions' {what[1]}"
        if isinstance(one, str) != isinstance(row.get("prompt", one), str):
            return "mixed", "columns 'prompt' and 'completions' mix text and messages"
    if len(said) == 2 and said[0] == said[1]:
        return "equal", "column 'completions' has two equal ones"
    if [type(rank) for rank in ranks or ()] != [int] * len(said) or min(ranks) < 1:
        words = "which must be one whole number for each completion, 1 the best,"
        return "ranks", f"column 'ranks' has {brief(ranks)}, {words}"
    return None


def _beside_fault(row: dict[str, Any]) -> tuple[str, str] | None:
    if not isinstance(row.get("chat_template_kwargs") or {}, dict):
        kwargs = brief(row["chat_template_kwargs"])
        return "kwargs", f"column 'chat_template_kwargs' has {kwargs}, which is no mapping,"
    if not _is_tools(row.get("tools")):
        return "tools", f"column 'tools' has {brief(row['tools'])}, which is no list of tools,"
    if "label" in row and row["label"] not in (True, False):
        return "label", f"column 'label' has {brief(row['label'])}, which must be true or false,"
    if "rating" in row and "completion" in row and not _is_number(row["rating"]):
        return "rating", f"column 'rating' has {brief(row['rating'])}, which is no number,"
    if any(name in row for name in JUDGED):
        weight, aspect = row.get("weight"), row.get("aspect")
        if weight is not None and not (_is_number(weight) and weight >= 0):
            return "weight", f"column 'weight' has {brief(weight)}, which is no number from 0 on,"
        if aspect is not None and not isinstance(aspect, str):
            return "aspect", f"column 'aspect' has {brief(aspect)}, which is no text,"
    if "margin" in row and "chosen" in row and not _is_number(row["margin"]):
        return "margin", f"column 'margin' has {brief(row['margin'])}, which is no number,"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_tools(value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return not value or isinstance(value, list)
    try:
        return isinstance(json.loads(value), list)
    except (ValueError, RecursionError):
        return False


def value_fault(value: Any) -> tuple[str, str] | None:
    """Say what is wrong with a value that should be text or messages.

    Args:
        value: The value.

    Returns:
        The kind of fault and a predicate with the value, or None.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return "empty", "is empty"
    if isinstance(value, str):
        return None
    if not isinstance(value, list):
        return "kind", f"holds {brief(value)}, which is neither text nor messages,"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return "message", f"holds {brief(message)}, which is no message with a role,"
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            return "content", f"holds {brief(odd_part(content))} as content, which is no text,"
    last = value[-1].get("content")
    has_text = bool(last.strip() if isinstance(last, str) else last)
    return None if has_text or value[-1].get("tool_calls") else ("empty", "is empty")


def _answer_fault(column: str, value: Any) -> tuple[str, str] | None:
    if isinstance(value, str):
        is_open = column != "prompt" and value.rstrip().endswith(OPEN_TURN)
        return ("open", "ends with Assistant: and no answer") if is_open else None
    if column in LEARNED_COLUMNS and all(turn["role"] != "assistant" for turn in value):
        return "unanswered", "has no turn of the assistant"
    return None


def brief(value: Any) -> str:
    """A value in a sentence, cut where it is long.

    Args:
        value: Any value.

    Returns:
        At most 40 characters.
    """
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
