"""Mixtures: several datasets as one, each with the share of its rows that is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recipes.lib.data.answers import kinds_of
from recipes.lib.data.row_checks import TEXT_COLUMNS
from recipes.lib.errors import UserError, first_line, note

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class Part:
    """One dataset of a mixture; the names are those of TRL's DatasetConfig where it has one."""

    path: str  # as dataset_name
    name: str | None = None  # as dataset_config
    revision: str | None = None
    format: str | None = None  # as dataset_format
    split: str | None = None  # as dataset_train_split
    test_split: str | None = None  # as dataset_test_split
    # Those that are kept, all by default; or by today's name the one in the file, and others stay.
    columns: list[str] | dict[str, str] | None = None
    text_field: str | None = None  # column that is read as text, TRL's dataset_text_field
    weight: float | None = None  # share of the dataset's own rows
    fraction: float | None = None  # share of the mixture

    @property
    def renamed(self) -> dict[str, str]:
        """Columns of the file that get another name, with that name."""
        given = self.columns if isinstance(self.columns, dict) else {}
        return {old: new for new, old in given.items()}

    @property
    def named(self) -> list[str]:
        """Columns that have to be there."""
        return list(self.renamed or self.columns or ())

    def keeps(self, column: str) -> bool:
        """Whether a column of the file is read; one that another is renamed to is not."""
        if isinstance(self.columns, dict):
            return column in self.renamed or column not in self.columns
        return self.columns is None or column in self.columns


def validate_parts(parts: Sequence[Part]) -> None:
    """Check the weights, before anything is read.

    Args:
        parts: The parts of a mixture.

    Raises:
        UserError: A number is out of its range, or both kinds are used, or fractions are missing.
    """
    for number, part in enumerate(parts):
        key = f"datasets[{number}] (path={part.path})"
        if not part.path:
            raise UserError(f"datasets[{number}]: path is empty; name a file, folder or Hub id.")
        if part.weight is not None and not 0 < part.weight <= 1:
            raise UserError(
                f"{key}: weight={part.weight} must be above 0 and at most 1, the share of the "
                "dataset's rows; to give it more room, lower the other weights."
            )
        if part.fraction is not None and not part.fraction > 0:
            raise UserError(
                f"{key}: fraction={part.fraction} must be above 0; leave the dataset out instead."
            )
    given = [part.fraction is not None for part in parts]
    if any(given) and any(part.weight is not None for part in parts):
        raise UserError(
            "datasets: weight (share of a dataset's own rows) and fraction (share of the mixture) "
            "exclude each other; use one of them."
        )
    if any(given) and not all(given):
        raise UserError(
            f"datasets[{given.index(False)}]: fraction is missing; give it to all datasets or none."
        )


def row_counts(parts: Sequence[Part], sizes: Sequence[int]) -> list[int]:
    """How many rows of each dataset the mixture takes.

    Fractions make the largest mixture in which no row comes twice.

    Args:
        parts: The parts of a mixture, validated.
        sizes: The number of rows that each has.

    Returns:
        The number of rows to take of each, at least one.
    """
    if parts[0].fraction is None:
        weights = [1.0 if part.weight is None else part.weight for part in parts]
        return [max(1, int(weight * size)) for weight, size in zip(weights, sizes, strict=True)]
    fractions = [part.fraction or 0.0 for part in parts]
    shares = [fraction / math.fsum(fractions) for fraction in fractions]
    total = min(size / share for size, share in zip(sizes, shares, strict=True))
    return [
        min(size, max(1, round(share * total))) for size, share in zip(sizes, shares, strict=True)
    ]


def mix_datasets(
    parts: Sequence[Part], datasets: Sequence[Dataset], seed: int, reads_answers: bool = False
) -> Dataset:
    """Take the rows of each dataset and put them one after the other.

    Args:
        parts: The parts of a mixture, validated.
        datasets: Their rows.
        seed: Of the choice of rows where not all are taken.
        reads_answers: As of `join_datasets`.

    Returns:
        The mixture; trainers shuffle it.

    Raises:
        UserError: As `join_datasets`.
    """
    counts = row_counts(parts, [len(dataset) for dataset in datasets])
    taken = [
        dataset.shuffle(seed=seed).select(range(count)) if count < len(dataset) else dataset
        for dataset, count in zip(datasets, counts, strict=True)
    ]
    told = ", ".join(f"{part.path} {count}" for part, count in zip(parts, counts, strict=True))
    note(f"datasets: {sum(counts)} training rows ({told}).")
    return join_datasets(parts, taken, reads_answers)


def join_datasets(
    parts: Sequence[Part], datasets: Sequence[Dataset], reads_answers: bool = False
) -> Dataset:
    """Put datasets one after the other; a further column that one lacks is None there.

    Args:
        parts: What the datasets are called in messages.
        datasets: Their rows.
        reads_answers: Whether pairs, ranks, ratings and thumbs may stand in one table.

    Returns:
        All rows.

    Raises:
        UserError: The datasets have not the same format, or a column has different types.
    """
    from datasets import concatenate_datasets

    formats = [sorted(set(TEXT_COLUMNS) & set(dataset.column_names)) for dataset in datasets]
    mixes = reads_answers and all(kinds_of(dataset.column_names) for dataset in datasets)
    for part, columns in zip(parts, formats, strict=True):
        if columns != formats[0] and not mixes:
            raise UserError(
                f"datasets: {part.path} has the columns {', '.join(columns) or 'of no format'}, "
                f"but {parts[0].path} has {', '.join(formats[0]) or 'those of no format'}; bring "
                "them to one format with format or columns."
            )
    try:
        return concatenate_datasets(list(datasets))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"datasets: one column has different types ({first_line(error)}); bring the datasets "
            "to one format, or keep only some columns with columns."
        ) from error
