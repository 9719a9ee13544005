"""Reading, checking and splitting data in TRL's formats.

A file, a folder of split files, a run folder that made data, or a Hub dataset becomes a training
and a test split. Plain text and messages are passed on as they are: TRL's trainers take both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.reading import read_splits

if TYPE_CHECKING:
    from datasets import Dataset

# Columns that make a row the same row; chosen and rejected are compared without their order,
# because a pair judged the other way round is the same pair.
CONTENT_COLUMNS = ("prompt", "completion", "messages", "text")


@dataclass(kw_only=True)
class DataArguments:
    """Which rows a recipe trains on and which it is tested on."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Data: a .jsonl, .json, .csv or .parquet file, a folder with one such file per "
            "split, a run that made data, or a Hub id."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub dataset."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Revision of a Hub dataset: a commit, tag or branch."}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "Split to train on, of a folder or Hub dataset."}
    )
    dataset_test_split: str = field(
        default="test",
        metadata={"help": "Split to test on, of a folder or Hub dataset, where there is one."},
    )
    test_dataset_name: str | None = field(
        default=None, metadata={"help": "Test data in a file of its own; never trained on."}
    )
    test_fraction: float = field(
        default=0.0,
        metadata={"help": "Share of the rows held out as test rows where no test data is given."},
    )
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Train on the first so many rows only."}
    )


def load_splits(
    args: DataArguments, seed: int, required_columns: Sequence[str]
) -> tuple[Dataset, Dataset | None]:
    """Load the training split and the test split.

    Args:
        args: What to load.
        seed: Of the split that `test_fraction` makes; equal rows go to the same side.
        required_columns: Columns that every row must fill.

    Returns:
        The training rows and the test rows, or None where there are no test rows.

    Raises:
        UserError: No data, a broken file, a missing column, an empty value, a test row in the
            training rows, or keys that contradict each other.
    """
    validate(args)
    train, test = _read(args)
    if test is None and args.test_fraction > 0:
        train, test = _split(train, args.test_fraction, seed)
    elif args.test_fraction > 0:
        raise UserError(
            f"test_fraction={args.test_fraction}: the data has test rows already; leave it out, or "
            "name another dataset_test_split."
        )
    for name, rows in (("train", train), ("test", test)):
        if rows is not None:
            check_rows(rows, required_columns, f"dataset_name={args.dataset_name} ({name})")
    if test is not None:
        assert_disjoint(train, test)
    if args.max_train_rows is not None:
        train = train.select(range(min(args.max_train_rows, len(train))))
    return train, test


def validate(args: DataArguments) -> None:
    """Check the keys against each other, before anything is read.

    Raises:
        UserError: dataset_name is missing, or a number is out of its range.
    """
    if not args.dataset_name:
        raise UserError("dataset_name is missing: name a file, a folder or a Hub dataset.")
    if not 0 <= args.test_fraction < 1:
        raise UserError(f"test_fraction={args.test_fraction}: give a share from 0 to below 1.")
    if args.max_train_rows is not None and args.max_train_rows < 1:
        raise UserError(f"max_train_rows={args.max_train_rows}: give 1 or more, or leave it out.")


def check_rows(dataset: Dataset, required_columns: Sequence[str], name: str) -> None:
    """Check that rows have the columns and that every value says something.

    Raises:
        UserError: There are no rows, a column is missing, or a value is empty.
    """
    if not len(dataset):
        raise UserError(f"{name}: no rows; give a file with at least one.")
    for column in required_columns:
        if column not in dataset.column_names:
            raise UserError(
                f"{name}: column {column!r} is missing; the columns are "
                f"{', '.join(dataset.column_names)}. Rename the right one to {column!r}."
            )
        empty = [row for row, value in enumerate(dataset[column]) if _is_empty(value)]
        if empty:
            raise UserError(
                f"{name}: column {column!r} is empty in {len(empty)} of {len(dataset)} rows, "
                f"first in row {empty[0]} (counted from 0); fill it or remove those rows."
            )


def check_template(row: dict[str, Any], column: str, has_template: bool) -> None:
    """Refuse conversations for a tokenizer that cannot render them.

    Args:
        row: One row of the data.
        column: A column that holds text or messages.
        has_template: Whether there will be a chat template.

    Raises:
        UserError: The column holds messages and there is no chat template.
    """
    if isinstance(row[column], list) and not has_template:
        raise UserError(
            f"chat_template_path is missing: {column} holds messages, but the tokenizer has no "
            "chat template; name a .jinja file or a model that has one."
        )


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """Plain text of a prompt or completion, for people and for files of samples.

    Args:
        prompt: A text, or messages.

    Returns:
        The text; a single message gives its content, several give "role: content" lines.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def assert_disjoint(train: Dataset, test: Dataset) -> None:
    """Refuse test rows that are also training rows.

    Two rows are the same if prompt, completion, messages, text and the set of chosen and rejected
    are the same; other columns do not matter.

    Raises:
        UserError: At least one test row is a training row.
    """
    known = set(_keys(train))
    seen = [row for row, key in enumerate(_keys(test)) if key in known]
    if seen:
        raise UserError(
            f"{len(seen)} of {len(test)} test rows are also training rows, first test row "
            f"{seen[0]} (counted from 0); remove them from one side."
        )


def _keys(dataset: Dataset) -> Iterator[str]:
    columns = [name for name in CONTENT_COLUMNS if name in dataset.column_names]
    pair = [name for name in ("chosen", "rejected") if name in dataset.column_names]
    for row in dataset.select_columns(columns + pair):
        sides = sorted(json.dumps(row[name], sort_keys=True) for name in pair)
        yield json.dumps([[row[name] for name in columns], sides], sort_keys=True)


def _split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    import numpy as np

    rows: dict[str, list[int]] = {}
    for row, key in enumerate(_keys(dataset)):
        rows.setdefault(key, []).append(row)
    groups = list(rows.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    num_test = round(fraction * len(groups))
    if not 0 < num_test < len(groups):
        raise UserError(
            f"test_fraction={fraction}: of {len(groups)} distinct rows that leaves one side empty; "
            "choose another share."
        )
    test = sorted(row for group in order[:num_test] for row in groups[group])
    train = sorted(row for group in order[num_test:] for row in groups[group])
    return dataset.select(train), dataset.select(test)


def _read(args: DataArguments) -> tuple[Dataset, Dataset | None]:
    name = str(args.dataset_name)
    splits = read_splits(
        name,
        split=args.dataset_train_split,
        config=args.dataset_config,
        revision=args.dataset_revision,
    )
    if args.dataset_train_split not in splits:
        raise UserError(
            f"dataset_train_split={args.dataset_train_split}: {name} has the splits "
            f"{', '.join(sorted(splits))}; name one of them."
        )
    train = splits.pop(args.dataset_train_split)
    if args.test_dataset_name is None:
        return train, splits.get(args.dataset_test_split)
    tests = read_splits(args.test_dataset_name, split=args.dataset_test_split)
    if args.dataset_test_split not in tests:
        raise UserError(
            f"dataset_test_split={args.dataset_test_split}: {args.test_dataset_name} has the "
            f"splits {', '.join(sorted(tests))}; name one of them."
        )
    return train, tests[args.dataset_test_split]


def _is_empty(value: Any) -> bool:
    if isinstance(value, list):
        return not value or not str(value[-1].get("content") or "").strip()
    return value is None or (isinstance(value, str) and not value.strip())
