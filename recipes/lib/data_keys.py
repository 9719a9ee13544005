"""The keys that name data, checked against each other, and the parts that they name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from recipes.lib.errors import UserError
from recipes.lib.formats import FORMATS
from recipes.lib.mixtures import Part, validate_parts

if TYPE_CHECKING:
    from recipes.lib.data import DataArguments

FORMAT_NAMES = ("trl", *FORMATS)


def validate(args: DataArguments) -> None:
    """Check the keys against each other, before anything is read.

    Raises:
        UserError: The data is not named or named twice, or a number is out of its range.
    """
    if args.datasets and args.dataset_name:
        raise UserError(
            f"datasets and dataset_name={args.dataset_name} exclude each other; leave one out."
        )
    if not args.datasets and not args.dataset_name:
        raise UserError("dataset_name is missing: name a file, a folder or a Hub dataset.")
    for part in parts_of(args):
        if part.format not in FORMAT_NAMES:
            raise UserError(
                f"datasets: format={part.format} of {part.path} must be one of "
                f"{', '.join(FORMAT_NAMES)}."
            )
    validate_parts(parts_of(args))
    _check_fraction(args.test_fraction, args.streaming)
    if args.max_train_rows is not None and args.max_train_rows < 1:
        raise UserError(f"max_train_rows={args.max_train_rows}: give 1 or more, or leave it out.")


def _check_fraction(fraction: float, streaming: bool) -> None:
    # As train_test_split of the datasets library: 1 is one row, and 1.0 would be all of them.
    if fraction < 0 or (isinstance(fraction, float) and fraction >= 1):
        raise UserError(
            f"test_fraction={fraction}: give a share from 0 to below 1, or the number of rows as a "
            "whole number (1 is one row)."
        )
    if fraction >= 1 and streaming:
        raise UserError(
            f"test_fraction={fraction}: a stream cannot hold out a number of rows; give a "
            "share below 1, or name test_dataset_name."
        )


def parts_of(args: DataArguments) -> list[Part]:
    """The parts of the mixture, with the keys of the whole where they say nothing.

    Args:
        args: What to load; its `datasets` may be plain mappings, as a YAML file gives them.

    Returns:
        One part for a single dataset.
    """
    parts = [Part(**part) if isinstance(part, dict) else part for part in args.datasets]
    if args.dataset_name:
        parts = [
            Part(path=args.dataset_name, name=args.dataset_config, revision=args.dataset_revision)
        ]
    return [
        replace(
            part,
            format=part.format or args.dataset_format,
            text_field=part.text_field or args.text_field,
            split=part.split or args.dataset_train_split,
            test_split=part.test_split or args.dataset_test_split,
        )
        for part in parts
    ]
