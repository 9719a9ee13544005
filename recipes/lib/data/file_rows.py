"""Reading one file of rows: JSON lines, JSON, CSV, text (these also in gzip), or Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from recipes.lib.data.messages import plain_messages
from recipes.lib.data.problems import PLACE, Problem, refuse_or_drop
from recipes.lib.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")
Row = dict[str, Any]
# Of CSV files, whose cells are all text.
MESSAGES = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
NUMBER = re.compile(r"\s*[-+]?\d+(\.\d+)?\s*")
LIKE_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
LIKE_TURN = re.compile(r"""\s*\{\s*['"](role|content|from|value)['"]\s*:""")  # sharegpt's sides
ALWAYS = ("messages", "conversations")  # no text is meant there
# pyarrow's errors are ValueErrors, TypeErrors and OverflowErrors; csv and gzip have their own.
PACKED_ERRORS = (EOFError, zlib.error)
READ_ERRORS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, csv.Error)


class BrokenRowError(ValueError):
    """One row cannot be read; the text completes "in 1 of 9 lines"."""


Placed = Iterator[tuple[str, Row | BrokenRowError]]  # rows with their places


def plain_name(path: Path) -> Path:
    """The path without the ending of gzip."""
    return path.with_name(path.name.removesuffix(".gz"))


def open_file(path: Path) -> Any:
    """Open a file for reading, uncompressed."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def read_file(path: Path, on_bad_rows: str = "refuse") -> Dataset:
    """Read one file of rows.

    Args:
        path: A .jsonl, .json (one list, or one object a line), .csv, .txt (a row a line) or
            .parquet file; but for the last also with .gz.
        on_bad_rows: "refuse" lines that cannot be read, or "drop" them.

    Returns:
        Its rows, with every column that any of them has.

    Raises:
        UserError: No rows, or not readable as what it claims to be.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from pyarrow import parquet

    with readable(str(path)):
        if path.suffix == ".parquet":
            dataset = Dataset(InMemoryTable(parquet.read_table(path)))
        else:
            dataset = to_dataset(read_text(path, on_bad_rows))
    if not len(dataset) or not dataset.column_names:
        raise UserError(f"dataset_name={path}: no rows; give a file with at least one.")
    return dataset


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Tell in one sentence what a reader of files raises.

    Args:
        name: The file.

    Raises:
        UserError: One of `READ_ERRORS` was raised.
    """
    try:
        yield
    except UserError:
        raise
    except (*READ_ERRORS, *PACKED_ERRORS) as error:
        raise UserError(
            f"dataset_name={name}: cannot be read as rows ({first_line(error)}); mend the file."
        ) from error


def to_dataset(rows: list[Row]) -> Dataset:
    """Make a dataset of rows, which may have different columns and values of mixed types.

    Args:
        rows: The rows.

    Returns:
        The dataset, with every column that any row has; absent values are None. Messages are in
        the form that chat templates read (`plain_messages`).
    """
    from datasets import Dataset, Json

    columns = list(dict.fromkeys(column for row in rows for column in row))
    filled = [{column: row.get(column) for column in columns} for row in map(plain_messages, rows)]
    dataset = Dataset.from_list(filled, on_mixed_types="use_json")
    # Of text beside other types the library makes JSON and reads it back: "42" would be a number.
    types = dataset.features.copy()
    misread = [name for name in columns if any(_is_read(types[name], row[name]) for row in filled)]
    if not misread:
        return dataset
    encoded = [row | {name: json.dumps(row[name]) for name in misread} for row in filled]
    types.update(dict.fromkeys(misread, Json()))
    return Dataset.from_list(encoded, features=types)


def _is_read(kind: Any, value: Any) -> bool:
    """Whether a text within a value stands where a type of the datasets library reads JSON."""
    if isinstance(value, str):
        return type(kind).__name__ == "Json"
    if isinstance(value, list) and hasattr(kind, "feature"):
        return any(_is_read(kind.feature, one) for one in value)
    if isinstance(value, dict) and isinstance(kind, dict):
        return any(_is_read(kind[key], one) for key, one in value.items())
    return False


def _utf8(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenRowError("not UTF-8 text") from error


def parse_line(line: bytes) -> Row:
    """Read one line of a JSON lines file.

    Args:
        line: Its bytes.

    Returns:
        The row.

    Raises:
        BrokenRowError: It is not UTF-8, not JSON, no object, or holds what no table can.
    """
    text = _utf8(line)
    row = _loads(text)
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise BrokenRowError("half a character (a lone surrogate)") from error
    if not isinstance(row, dict):
        raise BrokenRowError("not a JSON object")
    if not row:
        raise BrokenRowError("an object without a key")
    return row


def _csv_header(lines: Iterator[list[str]], path: Path) -> list[str]:
    header = next(lines, [])
    if len(set(header)) < len(header) or not all(name.strip() for name in header):
        raise UserError(f"{path}:1: a column has no name or that of another; name each once.")
    return header


def _csv_row(header: list[str], fields: list[str]) -> Row:
    """A line as text, but for messages in JSON, and for label and rating beside a completion."""
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
    if "completion" in row and NUMBER.fullmatch(row.get("rating", "")):
        row["rating"] = float(row["rating"])
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
    try:
        return json.loads(text, parse_int=_int, parse_float=_float, parse_constant=_constant)
    except BrokenRowError:
        raise
    except json.JSONDecodeError as error:
        raise BrokenRowError(f"not valid JSON ({error.msg})") from error
    except ValueError as error:
        raise BrokenRowError("a number that is too long") from error
    except RecursionError as error:
        raise BrokenRowError("JSON that is nested too deeply") from error


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


def row_or_fault(make: Callable[..., Row], *given: Any) -> Row | BrokenRowError:
    """The row that a function makes, or what is wrong with it."""
    try:
        return make(*given)
    except BrokenRowError as error:
        return error


def keep_good(
    placed: Iterable[tuple[str, Row | BrokenRowError]],
) -> tuple[list[Row], list[Problem], list[str]]:
    """The rows that could be read, what is wrong with the others, and the places of both."""
    rows, places, problems = list[Row](), list[str](), dict[str, Problem]()
    for place, row in placed:
        if isinstance(row, BrokenRowError):
            problems.setdefault(str(row), Problem(str(row))).rows.append(len(places))
        else:
            rows.append(row | {PLACE: place})
        places.append(place)
    return rows, list(problems.values()), places


def text_rows(file: IO[bytes], path: Path) -> Placed:
    """Read the rows of a text file one after the other, each with its line, counted from 1.

    Args:
        file: The file, open and uncompressed.
        path: Its path.

    Raises:
        UserError: As `csv_lines`; or the file is one list.
    """
    kind = plain_name(path).suffix
    if kind == ".csv":
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            yield from csv_lines(text, path)
        return
    make, is_first = (_text_row if kind == ".txt" else parse_line), kind != ".txt"
    # By bytes: text may hold separators that JSON does not take for the end of a line.
    for number, line in enumerate(file, 1):
        row = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not row.strip():
            continue
        if is_first and row.lstrip().startswith(b"["):
            raise UserError(
                f"{path}: a list can only be read as a whole; write one object a line, or "
                "leave out streaming."
            )
        is_first = False
        yield f"line {number} of {path}", row_or_fault(make, row.rstrip(b"\r\n"))


def _text_row(line: bytes) -> Row:
    return {"text": _utf8(line)}


def csv_lines(file: Iterable[str], path: Path) -> Placed:
    """Read rows one after the other, each with the line that it ends on.

    Raises:
        UserError: A column has no name, or two have the same.
    """
    csv.field_size_limit(sys.maxsize)  # a field may hold a whole document
    lines = csv.reader(file, strict=True)
    header = _csv_header(lines, path)
    for fields in filter(None, lines):
        yield f"line {lines.line_num} of {path}", row_or_fault(_csv_row, header, fields)


def read_text(path: Path, on_bad_rows: str = "refuse") -> list[Row]:
    """Read the rows of a file that is no Parquet file, each with its place.

    Raises:
        UserError: As `read_file`, but for what is not readable at all.
    """
    with open_file(path) as file:
        data = file.read()
    kind, content = plain_name(path).suffix, data.removeprefix(b"\xef\xbb\xbf")
    is_list = kind in (".json", ".jsonl") and content.lstrip().startswith(b"[")
    if kind == ".csv":
        _decoded(data, path, "utf-8-sig")
    placed = _json_list(content, path) if is_list else text_rows(io.BytesIO(data), path)
    rows, problems, places = keep_good(placed)
    refuse_or_drop(str(path), problems, places, on_bad_rows)
    return rows


def _decoded(data: bytes, path: Path, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8."
        ) from error


def _json_list(data: bytes, path: Path) -> Placed:
    try:
        rows = _loads(_decoded(data, path, "utf-8"))
    except BrokenRowError as error:
        line = getattr(error.__cause__, "lineno", None)
        raise UserError(f"{path}{f':{line}' if line else ''}: {error}; mend it.") from error
    for number, row in enumerate(rows):
        is_good = isinstance(row, dict) and row
        fault = BrokenRowError("not a JSON object with keys")
        yield f"row {number} (counted from 0) of {path}", row if is_good else fault
