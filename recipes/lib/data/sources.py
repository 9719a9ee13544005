"""Where rows can be read from one after the other: files, folders, saved datasets, the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.data.file_rows import Numbered, csv_lines, json_lines, readable
from recipes.lib.data.reading import find_splits, open_hub_dataset

if TYPE_CHECKING:
    from datasets import Dataset

PARQUET_ROWS = 1000  # rows of a Parquet file that are in memory at a time


@dataclass(frozen=True)
class RowSource:
    """Rows that can be gone through again and again without being in memory."""

    name: str  # what the messages call it
    word: str  # what a row is called: "row" (counted from 0) or "line" (counted from 1)
    rows: Callable[[], Numbered]


def find_sources(
    name: str, split: str, config: str | None = None, revision: str | None = None
) -> dict[str, RowSource]:
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
    return find_splits(
        name,
        split,
        hub=lambda: hub_sources(name, config, revision),
        saved=lambda rows: _dataset_source(name, rows),
        file=_file_source,
    )


def hub_sources(name: str, config: str | None, revision: str | None) -> dict[str, RowSource]:
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
    found = open_hub_dataset(name, config, revision, streaming=True)
    return {str(key): _dataset_source(name, rows) for key, rows in found.items()}


def _dataset_source(name: str, rows: Dataset) -> RowSource:
    return RowSource(name, "row", partial(_told, name, enumerate, rows))


def _file_source(path: Path) -> RowSource:
    readers: dict[str, Callable[[Path], Numbered]] = {
        ".jsonl": _json_rows,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    word = "row" if path.suffix == ".parquet" else "line"
    return RowSource(str(path), word, partial(_told, str(path), readers[path.suffix], path))


def _told(name: str, read: Callable[[Any], Iterable[tuple[int, Any]]], source: Any) -> Numbered:
    with readable(name):
        yield from read(source)


def _json_rows(path: Path) -> Numbered:
    with path.open("rb") as file:
        yield from json_lines(file, path)


def _csv_rows(path: Path) -> Numbered:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv_lines(file, path)


def _parquet_rows(path: Path) -> Numbered:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=PARQUET_ROWS)
        yield from enumerate(row for batch in batches for row in batch.to_pylist())
