"""Training rows and test rows: split by a seed, and never the same row on both sides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recipes.lib.data.problems import PLACE, places_of
from recipes.lib.data.row_checks import iterate_rows
from recipes.lib.errors import UserError, note
from recipes.lib.pictures.files import IMAGE, IMAGES, content

if TYPE_CHECKING:
    from datasets import Dataset

# Columns that make a row the same row; chosen and rejected, and ranked completions, are compared
# without their order, because a pair judged the other way round is the same pair.
CONTENT_COLUMNS = ("prompt", "completion", "messages", "text")
PAIR_COLUMNS = ("chosen", "rejected")
# What is held out where nobody says: a share of the distinct rows, at least so many, none of fewer.
DEFAULT_SHARE, LEAST_TEST_ROWS, LEAST_ROWS = 0.05, 8, 80


def split_rows(
    dataset: Dataset, fraction: float, seed: int, by_prompt: bool = False, whole: bool = False
) -> tuple[Dataset, Dataset]:
    """Hold out a share or a number of the rows; equal rows go to the same side.

    Args:
        dataset: All rows.
        fraction: Share of the distinct rows that become test rows, or from 1 on their number.
        seed: Of the choice.
        by_prompt: Whether rows of one prompt go to the same side, too.
        whole: As of `content_keys`.

    Returns:
        Training rows and test rows, each in the order of the data.

    Raises:
        UserError: One side would be empty.
    """
    import numpy as np

    rows: dict[str, list[int]] = {}
    for row, key in enumerate(_keys(dataset, by_prompt, whole)):
        rows.setdefault(key, []).append(row)
    groups = list(rows.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    num_test = round(fraction * len(groups) if fraction < 1 else fraction)
    if not 0 < num_test < len(groups):
        raise UserError(
            f"test_fraction={fraction:.12g}: of {len(groups)} distinct rows that leaves one side "
            f"empty; choose another {'share' if fraction < 1 else 'number'}."
        )
    test = sorted(row for group in order[:num_test] for row in groups[group])
    train = sorted(row for group in order[num_test:] for row in groups[group])
    return dataset.select(train), dataset.select(test)


def _keys(dataset: Dataset, by_prompt: bool, whole: bool = False) -> Iterator[str]:
    return map(_text, dataset["prompt"]) if by_prompt else content_keys(dataset, whole)


def default_test_rows(dataset: Dataset, max_train_rows: int | None, by_prompt: bool = False) -> int:
    """How many distinct rows are held out where nobody says.

    Args:
        dataset: All rows.
        max_train_rows: How many of them are trained on at most.
        by_prompt: As of `split_rows`.

    Returns:
        The number; 0 where there are too few rows.
    """
    number = min(len(set(_keys(dataset, by_prompt))), max_train_rows or len(dataset))
    return 0 if number < LEAST_ROWS else max(LEAST_TEST_ROWS, round(DEFAULT_SHARE * number))


def remove_overlap(
    train: Dataset, test: Dataset, on_bad_rows: str = "refuse", whole: bool = False
) -> Dataset:
    """Refuse test rows that are also training rows, or drop those from the training rows.

    Two rows are the same if prompt, completion, messages, text and the set of chosen and rejected
    are the same; other columns do not matter.

    Args:
        train: Training rows.
        test: Test rows.
        on_bad_rows: "refuse", or "drop" the training rows in question.
        whole: As of `content_keys`.

    Returns:
        The training rows, none of which is a test row.

    Raises:
        UserError: At least one test row is a training row, and none is to be dropped, or none
            would be left.
    """
    known = set(content_keys(train, whole))
    tests = list(content_keys(test, whole))
    seen = [row for row, key in enumerate(tests) if key in known]
    if not seen:
        return train
    if on_bad_rows != "drop":
        raise UserError(
            f"{len(seen)} of {len(test)} test rows are also training rows, first "
            f"{places_of(test)[seen[0]]}; remove them from one side, or set on_bad_rows=drop to "
            "leave them out of training."
        )
    held_out = set(tests)
    kept = [row for row, key in enumerate(content_keys(train, whole)) if key not in held_out]
    if not kept:
        raise UserError(
            "test_dataset_name: every training row is also a test row; give other test rows."
        )
    note(f"{len(train) - len(kept)} of {len(train)} training rows dropped: they are test rows too.")
    return train.select(kept)


def content_keys(dataset: Dataset, whole: bool = False) -> Iterator[str]:
    """Go through what makes each row that row.

    Args:
        dataset: The rows.
        whole: Whether all columns do, as of what a world is begun with.

    Yields:
        A text for each row; equal rows have equal texts.
    """
    if whole:
        names = [name for name in dataset.column_names if name != PLACE]
        yield from map(_text, iterate_rows(dataset, names))
        return
    known = (*CONTENT_COLUMNS, IMAGE, IMAGES, *PAIR_COLUMNS, "completions")
    names = [name for name in known if name in dataset.column_names]
    yield from map(content_key, iterate_rows(dataset, names))


def content_key(row: dict[str, Any]) -> str:
    """What makes a row that row.

    Args:
        row: The row; a key without a value counts as absent, as tables fill such keys in.

    Returns:
        A text; equal rows have equal texts.
    """
    said = [row[name] for name in PAIR_COLUMNS if row.get(name) is not None]
    sides = sorted(map(_text, (*said, *(row.get("completions") or ()))))
    others = {name: row[name] for name in CONTENT_COLUMNS if row.get(name) is not None}
    for name in (IMAGE, IMAGES):
        if isinstance(row.get(name), dict | list | str):  # undecoded
            others[name] = content(row[name])
    return json.dumps([_text(others), sides])


def _text(value: Any) -> str:
    return json.dumps(_without_none(value), sort_keys=True, default=str)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
