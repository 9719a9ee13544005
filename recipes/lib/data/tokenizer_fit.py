"""Rows against the tokenizer that is to read them: nothing twice, and nothing lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.file_rows import Row
from recipes.lib.data.problems import Problem, places_of, refuse_or_drop
from recipes.lib.data.row_checks import TEMPLATE_COLUMNS, TEXT_COLUMNS, iterate_rows
from recipes.lib.data.streaming import Rows
from recipes.lib.data.tokenization import tools_of
from recipes.lib.errors import note, one_sentence
from recipes.lib.models.tokenizers import is_lost, without_bos

SPOKEN = (*TEXT_COLUMNS, "completions")
NUM_SHOWN = 5  # characters in a sentence


def fit_rows(rows: Rows, tokenizer: Any, template: str | None, args: DataArguments) -> None:
    """Make training and test rows fit a tokenizer.

    Args:
        rows: In TRL's formats, checked; changed to what fits.
        tokenizer: The model's.
        template: The chat template that they will be rendered with.
        args: Where they come from, and what becomes of bad rows.

    Raises:
        UserError: As `fit_to_tokenizer`.
    """
    rows.train, rows.test = (
        fit_to_tokenizer(some, tokenizer, template, f"{args.label} ({split})", args.on_bad_rows)
        for some, split in ((rows.train, "train"), (rows.test, "test"))
    )
    if rows.stream is None:
        rows.known = rows.train


def fit_to_tokenizer(
    rows: Any,
    tokenizer: Any,
    template: str | None,
    name: str,
    on_bad_rows: str,
    columns: Sequence[str] = SPOKEN,
) -> Any:
    """Make rows fit a tokenizer.

    Args:
        rows: In TRL's formats, checked; a stream is only rid of a second BOS, None is let through.
        tokenizer: The model's.
        template: The chat template that they will be rendered with.
        name: What messages call the data.
        on_bad_rows: "refuse" or "drop" rows of which the tokenizer loses more than half, or that
            the chat template refuses; those are only looked for where they are to be dropped.
        columns: Those that the model reads.

    Returns:
        The rows; text that begins with the BOS token is without it where the tokenizer adds one.

    Raises:
        UserError: There are such rows and they are not to be dropped.
    """
    if rows is None:
        return None
    if hasattr(rows, "__len__"):
        lost, touched, problems = count_lost(rows, tokenizer, columns)
        if on_bad_rows == "drop":
            problems += refused_by_template(rows, tokenizer, template)
        bad, places = refuse_or_drop(name, problems, places_of(rows), on_bad_rows), places_of(rows)
        if set(touched) - bad:
            told = describe_lost(lost, len(touched), places[touched[0]])
            note(f"{name}: {told}; the model does not see them.")
        if bad:
            rows = rows.select([row for row in range(len(rows)) if row not in bad])
        if not any(_begins_with(tokenizer.bos_token, texts) for texts in _texts(rows, columns)):
            return rows
    if tokenizer.bos_token is None:
        return rows
    return rows.map(lambda row: _without_bos(row, tokenizer))


def refused_by_template(rows: Any, tokenizer: Any, template: str | None) -> list[Problem]:
    """The rows that a chat template refuses, such as for the order of their turns.

    Args:
        rows: The rows.
        tokenizer: The model's.
        template: The chat template; None where there is none, and then no row is refused.

    Returns:
        What the template says, each with its rows.
    """
    from jinja2.exceptions import TemplateError

    if isinstance(template, dict):  # several by name
        template = tokenizer.get_chat_template()
    problems: dict[str, Problem] = {}
    columns = [name for name in (*SPOKEN, *TEMPLATE_COLUMNS) if name in rows.column_names]
    for number, row in enumerate(iterate_rows(rows, columns) if template else ()):
        try:
            for messages in _conversations(row):
                tokenizer.apply_chat_template(
                    messages,
                    chat_template=template,
                    tokenize=False,
                    tools=tools_of(row),
                    **(row.get("chat_template_kwargs") or {}),
                )
        except TemplateError as error:
            what = f"the chat template cannot render ({one_sentence(error)})"
            problems.setdefault(what, Problem(what)).rows.append(number)
    return list(problems.values())


def _conversations(row: Row) -> list[list[Any]]:
    """What of a row is rendered."""
    before = row["prompt"] if isinstance(row.get("prompt"), list) else []
    sides = [row.get(name) for name in ("messages", "completion", "chosen", "rejected")]
    sides += row.get("completions") or []
    spoken = [before + side for side in sides if isinstance(side, list)]
    return spoken or ([before] if before else [])


def count_lost(
    rows: Any, tokenizer: Any, columns: Sequence[str] = SPOKEN
) -> tuple[list[str], list[int], list[Problem]]:
    """Characters that a tokenizer lacks.

    Args:
        rows: The rows.
        tokenizer: The model's.
        columns: Those that the model reads.

    Returns:
        The characters, the rows that have some, and as a problem the rows of which a column loses
        more than half.
    """
    lost, touched, problems = set[str](), list[int](), dict[str, Problem]()
    seen = LostCharacters(tokenizer)
    for number, texts in enumerate(_texts(rows, columns)):
        gone, faults = seen.of(texts)
        lost |= gone
        touched += [number] * bool(gone)
        for what in faults:
            problems.setdefault(what, Problem(what)).rows.append(number)
    return sorted(lost), touched, list(problems.values())


class LostCharacters:
    """Characters that a tokenizer lacks, row after row."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.is_suspect = cache(partial(is_lost, tokenizer))

    def of(self, texts: dict[str, str]) -> tuple[set[str], list[str]]:
        """Those of the texts of a row, and what is wrong with columns that lose more than half."""
        gone = {column: self._gone(text) for column, text in texts.items()}
        faults = [
            f"the tokenizer has no token for most characters of column {column!r}"
            for column, some in gone.items()
            if some and 2 * some.total() > sum(not one.isspace() for one in texts[column])
        ]
        return set().union(*gone.values()), faults

    def _gone(self, text: str) -> Counter[str]:
        # Of characters without a token by themselves those that have none within the text either.
        there = Counter(filter(self.is_suspect, text))
        if not there:
            return there
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        kept = [token for token in ids if token != self.tokenizer.unk_token_id]
        return there - Counter(self.tokenizer.decode(kept))


def describe_lost(lost: list[str], number: int, first: str) -> str:
    """In words, without the full stop: characters that a tokenizer lacks, and where they are."""
    shown = ", ".join(map(repr, lost[:NUM_SHOWN])) + (", ..." if len(lost) > NUM_SHOWN else "")
    return (
        f"the tokenizer has no token for {len(lost)} of the characters ({shown}), in "
        f"{number} rows, first in {first}"
    )


def _texts(rows: Any, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    for row in iterate_rows(rows, [column for column in columns if column in rows.column_names]):
        yield spoken_texts(row)


def spoken_texts(row: Row) -> dict[str, str]:
    """The texts of a row by column."""
    return {name: _text(row[name]) for name in SPOKEN if row.get(name) is not None}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    parts = (one.get("content") or "" if isinstance(one, dict) else _text(one) for one in value)
    return "\n".join(map(str, parts))


def _begins_with(token: str | None, texts: dict[str, str]) -> bool:
    return bool(token) and any(text.startswith(str(token)) for text in texts.values())


def _without_bos(row: Row, tokenizer: Any) -> Row:
    spoken: Iterable[str] = (name for name in TEXT_COLUMNS if isinstance(row.get(name), str))
    return {name: without_bos(row[name], tokenizer) for name in spoken}
