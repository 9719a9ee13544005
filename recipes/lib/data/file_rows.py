"""Reading one file of rows: JSON lines, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.data.problems import Problem, settle
from recipes.lib.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
Row = dict[str, Any]
# Of CSV files, whose cells are all text.
MESSAGES = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
LIKE_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
LIKE_TURN = re.compile(r"""\s*\{\s*['"](role|content|from|value)['"]\s*:""")  # sharegpt's sides
ALWAYS = ("messages", "conversations")  # no text is meant there
# pyarrow's errors are ValueErrors, TypeErrors and OverflowErrors; csv has its own.
READ_ERRORS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, csv.Error)


class BrokenRowError(ValueError):
    """One row cannot be read; the text completes "in 1 of 9 lines"."""


def read_file(path: Path, on_bad_rows: str = "refuse") -> Dataset:
    """Read one file of rows.

    Args:
        path: A .jsonl, .json (one list, or one object a line), .csv or .parquet file.
        on_bad_rows: "refuse" lines that cannot be read, or "drop" them.

    Returns:
        Its rows, with every column that any of them has.

    Raises:
        UserError: Unknown ending, no rows, or not readable as what it claims to be.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"dataset_name={path}: unknown ending; use {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".parquet":
            dataset = _read_parquet(path)
        elif path.suffix == ".csv":
            dataset = to_dataset(_csv_rows(path, on_bad_rows))
        else:
            dataset = to_dataset(_json_rows(path, on_bad_rows))
    except UserError:
        raise
    except READ_ERRORS as error:
        raise unreadable(str(path), error) from error
    if not len(dataset) or not dataset.column_names:
        raise UserError(f"dataset_name={path}: no rows; give a file with at least one.")
    return dataset


def unreadable(name: str, error: BaseException) -> UserError:
    """What a reader of files raised, in one sentence.

    Args:
        name: The file.
        error: One of `READ_ERRORS`.

    Returns:
        The error to raise.
    """
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"dataset_name={name}: cannot be read as rows ({reason}); mend the file.")


def to_dataset(rows: list[Row]) -> Dataset:
    """Make a dataset of rows, which may have different columns and values of mixed types.

    Args:
        rows: The rows.

    Returns:
        The dataset, with every column that any row has; absent values are None.
    """
    from datasets import Dataset

    columns = list(dict.fromkeys(column for row in rows for column in row))
    filled = [{column: row.get(column) for column in columns} for row in rows]
    return Dataset.from_list(filled, on_mixed_types="use_json")


def parse_line(line: bytes) -> Row:
    """Read one line of a JSON lines file.

    Args:
        line: Its bytes.

    Returns:
        The row.

    Raises:
        BrokenRowError: It is not UTF-8, not JSON, no object, or holds what no table can.
    """
    try:
        text = line.decode("utf-8")
        row = _loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # finds half a character
    except UnicodeDecodeError as error:
        raise BrokenRowError("not UTF-8 text") from error
    except UnicodeEncodeError as error:
        raise BrokenRowError("half a character (a lone surrogate)") from error
    except json.JSONDecodeError as error:
        raise BrokenRowError(f"not valid JSON ({error.msg})") from error
    except BrokenRowError:
        raise
    except ValueError as error:
        raise BrokenRowError("a number that is too long") from error
    except RecursionError as error:
        raise BrokenRowError("JSON that is nested too deeply") from error
    if not isinstance(row, dict):
        raise BrokenRowError("not a JSON object")
    if not row:
        raise BrokenRowError("an object without a key")
    return row


def csv_header(lines: Iterator[list[str]], path: Path) -> list[str]:
    """Read the names of the columns.

    Args:
        lines: A csv reader at the start of its file.
        path: The file.

    Returns:
        The names.

    Raises:
        UserError: A column has no name, or two have the same.
    """
    header = next(lines, [])
    if len(set(header)) < len(header) or not all(name.strip() for name in header):
        raise UserError(f"{path}:1: a column has no name or that of another; name each once.")
    return header


def csv_row(header: list[str], fields: list[str]) -> Row:
    """Make a row of a line of a CSV file.

    Args:
        header: Names of the columns.
        fields: The cells.

    Returns:
        The row: text, but for messages that are written as JSON, and for the label beside a
        completion where it is a word for true or false.

    Raises:
        BrokenRowError: There are more or fewer cells, or messages are not written as JSON.
    """
    if len(fields) != len(header):
        raise BrokenRowError("a number of fields that is not the header's")
    row: Row = dict(zip(header, fields, strict=True))
    for column in MESSAGES:
        cell = row.get(column, "")
        if LIKE_MESSAGES.match(cell) or (column in ALWAYS and cell.strip()):
            row[column] = _messages(column, cell, list)
        elif column in ("chosen", "rejected") and LIKE_TURN.match(cell):
            row[column] = _messages(column, cell, dict)
    if "label" in row and "completion" in row:
        row["label"] = LABELS.get(row["label"].strip().lower(), row["label"])
    return row


def _messages(column: str, cell: str, kind: type) -> Any:
    try:
        found = parse_line(f'{{"cell": {cell}}}'.encode())["cell"]
    except BrokenRowError as error:
        raise BrokenRowError(
            f"messages in column {column!r} that cannot be read ({error})"
        ) from error
    if not isinstance(found, kind):
        raise BrokenRowError(f"a column {column!r} that is no list of messages in JSON")
    return found


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=_int, parse_float=_float, parse_constant=_constant)


def _int(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise BrokenRowError("a number that is too long")
    return number


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BrokenRowError("a number that is too long")
    return number


def _constant(text: str) -> None:
    # Python writes NaN where a value is missing; JSON has no such word.
    if text != "NaN":
        raise BrokenRowError(f"{text}, which is no number in JSON,")


def _json_rows(path: Path, on_bad_rows: str) -> list[Row]:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        return _json_list(data, path)
    # Not splitlines: text may hold separators that JSON does not take for the end of a line.
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    rows, problems = [], dict[str, Problem]()
    for number, line in lines:
        try:
            rows.append(parse_line(line))
        except BrokenRowError as error:
            problems.setdefault(str(error), Problem(str(error))).rows.append(number)
    if problems:
        found = list(problems.values())
        place = f"{path}:{found[0].rows[0]}"
        settle(place, found, len(lines), on_bad_rows, row_word="line")
    return rows


def _json_list(data: bytes, path: Path) -> list[Row]:
    try:
        rows = _loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); mend it.") from error
    except RecursionError as error:
        raise UserError(f"{path}: JSON that is nested too deeply; mend the file.") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; mend the file.") from error
    wrong = [number for number, row in enumerate(rows) if not isinstance(row, dict) or not row]
    if wrong:
        raise UserError(
            f"{path}: item {wrong[0]} of the list (counted from 0) is not a JSON object with "
            "keys; write one object for each row."
        )
    return list(rows)


def _csv_rows(path: Path, on_bad_rows: str) -> list[Row]:
    csv.field_size_limit(sys.maxsize)  # a field may hold a whole document
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8."
        ) from error
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = csv_header(lines, path)
    rows, total, problems = [], 0, dict[str, Problem]()
    for fields in filter(None, lines):
        total += 1
        try:
            rows.append(csv_row(header, fields))
        except BrokenRowError as error:
            problems.setdefault(str(error), Problem(str(error))).rows.append(lines.line_num)
    if problems:
        found = list(problems.values())
        settle(f"{path}:{found[0].rows[0]}", found, total, on_bad_rows, row_word="line")
    return rows


def _read_parquet(path: Path) -> Dataset:
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(pq.read_table(path)))
