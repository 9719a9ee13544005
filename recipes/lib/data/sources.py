"""Where rows can be read from one after the other: files, folders, saved datasets, the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.data.file_rows import Placed, open_file, readable, text_rows
from recipes.lib.data.reading import find_splits, open_hub_dataset

if TYPE_CHECKING:
    from datasets import Dataset

PARQUET_ROWS = 1000  # rows of a Parquet file that are in memory at a time


@dataclass(frozen=True)
class RowSource:
    """Rows that can be gone through again and again without being in memory."""

    name: str  # what the messages call it
    rows: Callable[[], Placed]


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
    return RowSource(name, partial(_counted, name, lambda: rows))


def _file_source(path: Path) -> RowSource:
    if path.suffix == ".parquet":
        return RowSource(str(path), partial(_counted, str(path), partial(_parquet_rows, path)))
    return RowSource(str(path), partial(_text_rows, path))


def _counted(name: str, read: Callable[[], Iterable[Any]]) -> Placed:
    with readable(name):
        for number, row in enumerate(read()):
            yield f"row {number} (counted from 0) of {name}", row


def _text_rows(path: Path) -> Placed:
    with readable(str(path)), open_file(path) as file:
        yield from text_rows(file, path)


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            yield from batch.to_pylist()
