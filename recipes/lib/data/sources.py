"""Where rows can be read from one after the other: files, folders, saved datasets, the Hub."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.data.file_rows import (
    READ_ERRORS,
    BrokenRowError,
    Row,
    csv_header,
    csv_row,
    parse_line,
    unreadable,
)
from recipes.lib.data.reading import (
    UNREADABLE_HUB,
    final_of,
    is_saved,
    local_path,
    read_saved,
    split_files,
)
from recipes.lib.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Numbered = Iterator[tuple[int, Row | BrokenRowError]]
BATCH = 1000  # rows of a Parquet file that are in memory at a time


@dataclass(frozen=True)
class Source:
    """Rows that can be gone through again and again without being in memory."""

    name: str  # what the messages call it
    word: str  # what a row is called: "row" (counted from 0) or "line" (counted from 1)
    rows: Callable[[], Numbered]


def find_sources(
    name: str, split: str, config: str | None = None, revision: str | None = None
) -> dict[str, Source]:
    """Find all splits that a name stands for.

    Args:
        name: A file, a folder, a run folder (its final/), or a Hub id.
        split: Name to give to the rows of a single file.
        config: Configuration of a Hub dataset.
        revision: Revision of a Hub dataset.

    Returns:
        A source for each split.

    Raises:
        UserError: Nothing is there, or it cannot be read one row after the other.
    """
    path = local_path(name)
    if path is None:
        return hub_sources(name, config, revision)
    if path.is_file():
        return {split: _file_source(path)}
    folder = final_of(path)
    if is_saved(folder):
        saved = read_saved(folder, split)
        return {key: _dataset_source(name, rows) for key, rows in saved.items()}
    files = split_files(folder, name)
    return {key: _file_source(file) for key, file in files.items()}


def hub_sources(name: str, config: str | None, revision: str | None) -> dict[str, Source]:
    """Open what the datasets library streams under a name.

    Args:
        name: A Hub id.
        config: Its configuration.
        revision: Its revision.

    Returns:
        A source for each split.

    Raises:
        UserError: There is no such dataset, or it cannot be reached.
    """
    from recipes.lib.data.reading import open_hub

    try:
        found = open_hub(name, config, revision, streaming=True)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(UNREADABLE_HUB.format(name=name, reason=reason)) from error
    return {str(key): _dataset_source(name, rows) for key, rows in found.items()}


def _dataset_source(name: str, rows: Dataset) -> Source:
    return Source(name, "row", partial(_told, name, partial(enumerate, rows)))


def _file_source(path: Path) -> Source:
    readers: dict[str, Callable[[Path], Numbered]] = {
        ".jsonl": _json_lines,
        ".json": _json_lines,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if path.suffix not in readers:
        raise UserError(f"dataset_name={path}: unknown ending; use {', '.join(readers)}.")
    word = "row" if path.suffix == ".parquet" else "line"
    return Source(str(path), word, partial(_told, str(path), partial(readers[path.suffix], path)))


def _told(name: str, read: Callable[[], Iterable[tuple[int, Any]]]) -> Numbered:
    """Tell what the readers of files raise in one sentence."""
    try:
        yield from read()
    except UserError:
        raise
    except READ_ERRORS as error:
        raise unreadable(name, error) from error


def _json_lines(path: Path) -> Numbered:
    is_first = True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            if is_first and text.lstrip().startswith(b"["):
                raise UserError(
                    f"{path}: a list can only be read as a whole; write one object a line, or "
                    "leave out streaming."
                )
            is_first = False
            try:
                yield number, parse_line(text.removesuffix(b"\n"))
            except BrokenRowError as error:
                yield number, error


def _csv_rows(path: Path) -> Numbered:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = csv_header(lines, path)
        for fields in lines:
            if not fields:
                continue
            try:
                yield lines.line_num, csv_row(header, fields)
            except BrokenRowError as error:
                yield lines.line_num, error


def _parquet_rows(path: Path) -> Numbered:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            for row in batch.to_pylist():
                yield number, row
                number += 1
