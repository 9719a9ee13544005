"""Reading rows: a file, a folder with one file per split, a run that made data, a Hub dataset."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_splits(
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None
) -> dict[str, Dataset]:
    """Read all splits that a name stands for.

    Args:
        name: A file, a folder, a run folder (its final/), or a Hub id.
        split: Name to give to the rows of a single file.
        config: Configuration of a Hub dataset.
        revision: Revision of a Hub dataset.

    Returns:
        Rows by split; the files of a folder are its splits, named by their stems.

    Raises:
        UserError: Nothing is there, or it cannot be read.
    """
    path = Path(name)
    if path.is_dir():
        folder = path / "final" if (path / "final").is_dir() else path
        files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise UserError(
                f"dataset_name={name}: no {', '.join(SUFFIXES)} file in {folder}; name the file or "
                "a folder that holds train.jsonl."
            )
        return {file.stem: read_file(file) for file in files}
    if path.is_file():
        return {split: read_file(path)}
    looks_local = path.suffix in SUFFIXES or name.startswith((".", "~", "/", "runs/"))
    if looks_local or name.count("/") > 1:
        raise UserError(f"dataset_name={name}: there is no such file or folder; check the path.")
    return _read_hub(name, config, revision)


def read_file(path: Path) -> Dataset:
    """Read one file of rows.

    Args:
        path: A .jsonl, .json (one list, or one object a line), .csv or .parquet file.

    Returns:
        Its rows.

    Raises:
        UserError: Unknown ending, no rows, or not readable as what it claims to be.
    """
    from datasets import Dataset

    if path.suffix not in SUFFIXES:
        raise UserError(f"dataset_name={path}: unknown ending; use {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".parquet":
            dataset = Dataset.from_parquet(str(path), keep_in_memory=True)
        else:
            text = path.read_text(encoding="utf-8-sig")
            dataset = Dataset.from_list(
                list(_csv_rows(text) if path.suffix == ".csv" else _json_rows(text, path))
            )
    except UserError:
        raise
    # pyarrow's errors are ValueErrors and TypeErrors; datasets wraps some in RuntimeErrors.
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"dataset_name={path}: cannot be read as rows ({reason}); mend the file."
        ) from error
    if not len(dataset):
        raise UserError(f"dataset_name={path}: no rows; give a file with at least one.")
    return dataset


def _read_hub(name: str, config: str | None, revision: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    try:
        return dict(load_dataset(name, config, revision=revision))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"dataset_name={name}: no such file here, and the Hub gave no dataset ({reason}); "
            "check the name and the network."
        ) from error


def _csv_rows(text: str) -> Iterable[dict[str, str]]:
    return csv.DictReader(io.StringIO(text, newline=""))


def _json_rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    if text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    # Not splitlines: text may hold separators that JSON does not take for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); mend it.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object; write one object a line.")
        yield row
