"""The keys that name data, checked against each other, and the parts that they name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from recipes.lib.config.fields import option
from recipes.lib.data.formats import FORMATS
from recipes.lib.data.mixtures import Part, validate_parts
from recipes.lib.data.problems import BAD_ROW_CHOICES
from recipes.lib.data.reading import FEEDBACK_FILES
from recipes.lib.errors import UserError

FORMAT_NAMES = ("trl", *FORMATS)


def check_data(args: DataArguments) -> None:
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
    # As train_test_split of the datasets library: 1 is one row, and 1.0 would be all of them.
    fraction = args.test_fraction
    if fraction < 0 or (isinstance(fraction, float) and fraction >= 1):
        raise UserError(
            f"test_fraction={fraction}: give a share from 0 to below 1, or the number of rows as a "
            "whole number (1 is one row)."
        )
    if fraction >= 1 and args.streaming:
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
            columns=part.columns or args.columns,
            split=part.split or args.dataset_train_split,
            test_split=part.test_split or args.dataset_test_split,
        )
        for part in parts
    ]


def test_part(args: DataArguments) -> Part:
    """The test data that is named by itself, as a part."""
    part = Part(path=str(args.test_dataset_name), format=args.dataset_format, columns=args.columns)
    return replace(part, text_field=args.text_field, split=args.dataset_test_split)


@dataclass(kw_only=True)
class DataArguments:
    """Which rows a recipe trains on and which it is tested on."""

    # Of a feedback project, what the recipe reads; prompts stand in all of its files.
    FEEDBACK: ClassVar[tuple[str, ...]] = FEEDBACK_FILES
    # TRL's parser of flags takes no such annotation: 1 is one row, and 1.0 would be all of them.
    HINTS: ClassVar[dict[str, Any]] = {"test_fraction": int | float}

    dataset_name: str | None = option(
        None,
        "Data: a .jsonl, .json, .csv, .txt (or .gz) or .parquet file, a folder with one per "
        "split, a saved dataset, a run that made data, or a Hub id.",
    )
    dataset_config: str | None = option(None, "Configuration of a Hub dataset.")
    dataset_revision: str | None = option(
        None, "Revision of a Hub dataset: a commit, tag or branch."
    )
    dataset_format: str = option(
        "trl",
        "What the rows are: trl (all formats of TRL's dataset page), alpaca, sharegpt, "
        "or hh (raw transcripts of Human and Assistant).",
        choices=FORMAT_NAMES,
    )
    columns: dict[str, str] | None = option(
        None, "What columns of the file are: {prompt: question, completion: answer}."
    )
    datasets: list[Part] = option(
        list,
        "A mixture instead of dataset_name: mappings of path, and perhaps name, "
        "revision, format, split, test_split, columns, weight (share of its own rows) or "
        "fraction (share of the mixture).",
    )
    dataset_train_split: str = option("train", "Split to train on, of a folder or Hub dataset.")
    dataset_test_split: str = option(
        "test", "Split to test on, of a folder or Hub dataset, where there is one."
    )
    test_dataset_name: str | None = option(
        None, "Test data in a file of its own; never trained on."
    )
    test_fraction: float = option(
        0.0,
        "Share of the rows held out as test rows where no test data is given; a whole "
        "number such as 1 or 500 is their number. Left out, sft, reward, classify, dpo and kto "
        "hold out 5 %, at least 8, none of fewer than 80, of a stream, or with eval_strategy=no.",
    )
    max_train_rows: int | None = option(None, "Train on the first so many rows only.")
    on_bad_rows: str = option(
        "refuse",
        "What becomes of rows that cannot be used: refuse the data, or drop and count them.",
        choices=BAD_ROW_CHOICES,
    )

    streaming: bool = option(
        False,
        "Read training rows while training, instead of all of them before; of sft, "
        "reward and dpo, with max_steps.",
    )

    text_field: str | None = field(default=None, init=False)  # set by recipes whose trainer has it
    holds_out: bool = field(default=False, init=False)  # set by recipes that test by default
    reads_answers: bool = field(default=False, init=False)  # set by what learns from all kinds
    reads_pictures: bool = field(default=False, init=False)  # set for models that do
    splits_labelled: bool = field(default=False, init=False)  # set by what learns from labels

    @property
    def label(self) -> str:
        """What messages call the data."""
        return f"dataset_name={self.dataset_name}" if self.dataset_name else "datasets"

    def data_names(self) -> list[str]:
        """Paths and Hub ids of all data, for the lineage."""
        parts = [part.path for part in parts_of(self)] if self.datasets else []
        return [name for name in (self.dataset_name, *parts, self.test_dataset_name) if name]
