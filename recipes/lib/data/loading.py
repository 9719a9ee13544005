"""Which rows a run trains on and which it is tested on, in TRL's formats.

A file, a folder, a saved dataset, a run that made data, a Hub dataset or a mixture of them becomes
a training and a test split. Plain text and messages are passed on as they are: TRL's trainers take
both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from recipes.lib.data.arguments import DataArguments, check_data, parts_of, test_part
from recipes.lib.data.file_rows import to_dataset
from recipes.lib.data.formats import (
    FORMATS,
    drop_repeated_prompt,
    is_transcript,
    split_labelled,
    to_trl,
    with_template_kwargs,
)
from recipes.lib.data.mixtures import Part, join_datasets, mix_datasets
from recipes.lib.data.problems import PLACE, named_columns, places_of
from recipes.lib.data.reading import choose_split, read_splits
from recipes.lib.data.row_checks import TEXT_COLUMNS, check_rows
from recipes.lib.data.splitting import default_test_rows, remove_overlap, split_rows
from recipes.lib.errors import UserError, note
from recipes.lib.pictures.files import IMAGE, IMAGES, opened, pictured, undecoded, with_pictures

if TYPE_CHECKING:
    from datasets import Dataset


RequiredColumns = Sequence[str] | Callable[["Dataset"], Sequence[str]]
# What a row may have beside the columns of its format; a margin is read by reward models alone.
BESIDE = ("tools", "chat_template_kwargs", "noise")
# Columns by which TRL's trainers would take rows for tokenized, or for more than text.
TOKEN_COLUMNS = """
input_ids attention_mask labels completion_mask assistant_masks token_type_ids position_ids
seq_lengths prompt_ids completion_ids chosen_ids rejected_ids chosen_input_ids rejected_input_ids
ref_logps ref_chosen_logps ref_rejected_logps KL_completion_ids image images
""".split()
# What reward functions are given by these names is what the policy was asked and said.
GIVEN_COLUMNS = ("prompts", "completions", "completion_ids", "image", "images")


def load_splits(
    args: DataArguments,
    seed: int,
    required_columns: RequiredColumns,
    beside: Sequence[str] | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Load the training split and the test split.

    Args:
        args: What to load.
        seed: Of the split that `test_fraction` makes, and of the choice of a mixture's rows.
        required_columns: Columns that every row must fill, or a function that tells them from the
            data; none of an environment, whose rows are the same only if all columns are.
        beside: Further columns that are kept; None for all, which functions are given.

    Returns:
        The training rows and the test rows, or None where there are no test rows.

    Raises:
        UserError: No data, a broken file, a missing column, a bad row, a test row in the training
            rows, or keys that contradict each other.
    """
    check_data(args)
    train, test = read_rows(args, seed)
    name, own = args.label, (args, required_columns, beside)
    train = _checked(train, "train", *own)
    test = None if test is None else _checked(test, "test", *own)
    args.reads_pictures = args.reads_pictures and _both_pictured(train, test, name)
    # What is said of single completions orders those of one prompt, if they stay together.
    by_prompt = args.reads_answers and "completion" in train.column_names
    whole = required_columns == ()  # of an environment, to which all columns are told
    if test is None and args.holds_out:
        args.test_fraction = default_test_rows(train, args.max_train_rows, by_prompt)
    if test is None and args.test_fraction > 0:
        train, test = split_rows(train, args.test_fraction, seed, by_prompt, whole)
        if args.holds_out:
            note(
                f"{name}: {len(test)} of {len(train) + len(test)} rows are held out to test on; "
                "test_fraction=0 trains on all."
            )
    elif test is not None:
        train = remove_overlap(train, test, args.on_bad_rows, whole)
    if args.max_train_rows is not None:
        train = train.select(range(min(args.max_train_rows, len(train))))
    return (opened(train), opened(test)) if args.reads_pictures else (train, test)


def _checked(
    rows: Dataset,
    key: str,
    args: DataArguments,
    required: RequiredColumns,
    beside: Sequence[str] | None,
) -> Dataset:
    if args.reads_pictures:
        rows = with_pictures(rows, places_of(rows))
    label = f"{args.label} ({key})"
    return with_template_kwargs(check_format(rows, required, label, args.on_bad_rows, beside)[0])


def _both_pictured(train: Dataset, test: Dataset | None, name: str) -> bool:
    is_there = IMAGES in train.column_names
    if test is not None and is_there != (IMAGES in test.column_names):
        raise UserError(
            f"{name}: of training and test rows only one side has pictures; give both some."
        )
    return is_there


def read_rows(args: DataArguments, seed: int) -> tuple[Dataset, Dataset | None]:
    """Read training and test rows in TRL's formats, unchecked.

    Args:
        args: What to load, validated.
        seed: Of the choice of a mixture's rows.

    Returns:
        The training rows and the test rows that the data brings, or None.

    Raises:
        UserError: As load_splits, but for what it says of rows.
    """
    if args.streaming:
        raise UserError(
            "streaming=true: this recipe needs all its rows at hand; sft, reward and dpo stream. "
            "Leave it out, and cut very large data with a split or max_train_rows."
        )
    parts = parts_of(args)
    found = [_read_part(part, args) for part in parts]
    # Of a mixture that is to be split, TRL splits the training rows whatever else there is.
    splits_itself = bool(args.datasets) and args.test_fraction > 0
    tests = [
        (part, rows)
        for part, (_, rows) in zip(parts, found, strict=True)
        if rows is not None and not splits_itself and args.test_dataset_name is None
    ]
    mixes = args.reads_answers
    test = None
    if tests:
        test = join_datasets([part for part, _ in tests], [rows for _, rows in tests], mixes)
    if args.test_dataset_name is not None:
        part, key = test_part(args), args.dataset_test_split
        splits = read_splits(part.path, split=key, on_bad_rows=args.on_bad_rows)
        rows = choose_split(splits, key, part.path, "dataset_test_split")
        test = in_trl_format(rows, part, args.on_bad_rows)
    if test is not None:
        refuse_split(args)
    trains = [rows for rows, _ in found]
    train = mix_datasets(parts, trains, seed, mixes) if args.datasets else trains[0]
    if args.splits_labelled:
        train, test = _split_labelled(train), None if test is None else _split_labelled(test)
    return train, test


def _split_labelled(rows: Dataset) -> Dataset:
    if not {"messages", "label"} <= set(rows.column_names):
        return rows
    return to_dataset([split_labelled(row) for row in rows.to_list()])


def _read_part(part: Part, args: DataArguments) -> tuple[Dataset, Dataset | None]:
    on_bad_rows = args.on_bad_rows
    splits = read_splits(
        part.path,
        split=str(part.split),
        config=part.name,
        revision=part.revision,
        on_bad_rows=on_bad_rows,
    )
    chosen = [choose_split(splits, part.split, part.path, feedback=args.FEEDBACK)]
    if args.reads_answers and part.split not in splits:  # a project, of which every answer counts
        pairs_too = "ranks" not in splits  # they stand in ranks, too
        named = [name for name in args.FEEDBACK if name != "preference" or pairs_too]
        chosen = [splits[name] for name in named if name in splits]
    trains = [in_trl_format(rows, part, on_bad_rows) for rows in chosen]
    train = trains[0] if len(trains) == 1 else join_datasets([part] * len(trains), trains, True)
    test = splits.get(str(part.test_split)) if part.test_split != part.split else None
    return train, None if test is None else in_trl_format(test, part, on_bad_rows)


def refuse_split(args: DataArguments) -> None:
    """Refuse to split rows off where there are test rows.

    Raises:
        UserError: test_fraction is set.
    """
    if args.test_fraction > 0:
        raise UserError(
            f"test_fraction={args.test_fraction}: the data has test rows already; leave it out, or "
            "name another dataset_test_split."
        )


def check_format(
    rows: Dataset,
    required: RequiredColumns,
    name: str,
    on_bad_rows: str,
    beside: Sequence[str] | None = None,
) -> tuple[Dataset, list[str]]:
    """Check rows against the columns that they have to fill.

    Args:
        rows: In TRL's formats.
        required: Columns that every row must fill, or a function that tells them from the data.
        name: What the messages call the data.
        on_bad_rows: "refuse" or "drop" rows with a fault.
        beside: As of `load_splits`.

    Returns:
        The good rows, and the columns: those that are required, and the prompt of pairs.

    Raises:
        UserError: As `check_rows`.
    """
    columns = list(required(rows) if callable(required) else required)
    if pictured(rows):
        columns.append(IMAGES)
    if "chosen" in columns and "prompt" in rows.column_names and "prompt" not in columns:
        columns.append("prompt")
    rows = _own_columns(rows, columns, name, beside)
    if IMAGE in columns and IMAGE in rows.column_names:
        rows = undecoded(rows, places_of(rows))
    return check_rows(rows, columns, name, on_bad_rows), columns


def _own_columns(
    rows: Dataset, columns: Sequence[str], name: str, beside: Sequence[str] | None
) -> Dataset:
    """Leave out columns that would stand for something else than the text of a row."""
    if not set(columns) <= set(rows.column_names):
        return rows  # which is told next
    reserved = GIVEN_COLUMNS if beside is None else TOKEN_COLUMNS
    every = set(reserved) if beside is None else {*named_columns(rows)} - {*beside}
    others = every - {*columns}
    out = [column for column in rows.column_names if column in others]
    told = [column for column in out if column in reserved]
    if told:
        why = "rewards get what is sampled" if beside is None else "a row is learned by its text"
        note(f"{name}: left out {', '.join(told)}: {why}.")
    if beside is not None and "label" in out and False in rows["label"]:
        note(f"{name}: left out label: rows with false are learned, too; rlhf kto heeds labels.")
    return rows.remove_columns(out)


def in_trl_format(rows: Dataset, part: Part, on_bad_rows: str) -> Dataset:
    """Keep the columns that a part names, and convert its format.

    Args:
        rows: As they stand in the file.
        part: What they belong to.
        on_bad_rows: "refuse" or "drop" rows that do not have the format.

    Returns:
        The rows in TRL's formats.

    Raises:
        UserError: A column is not there, or rows do not have the format.
    """
    if PLACE not in rows.column_names:  # what is no text file
        places = [f"row {row} (counted from 0) of {part.path}" for row in range(len(rows))]
        rows = rows.add_column(PLACE, places)
    if part.columns is not None:
        absent = [column for column in part.named if column not in rows.column_names]
        if absent:
            raise UserError(
                f"columns names {absent[0]}, but {part.path} has "
                f"{', '.join(named_columns(rows))}; name those."
            )
        kept = [name for name in named_columns(rows) if part.keeps(name)]
        rows = rows.select_columns([*kept, PLACE])
        rows = rows.rename_columns({old: new for old, new in part.renamed.items() if old != new})
    if part.text_field in rows.column_names and "text" not in rows.column_names:
        rows = rows.rename_column(part.text_field, "text")
    if part.format in FORMATS:
        rows = to_trl(rows, part.format, part.path, on_bad_rows)
    rows = _with_plain_messages(drop_repeated_prompt(rows))
    if part.format == "trl" and len(rows) and is_transcript(rows[0]):
        note(
            f"{part.path}: chosen and rejected are transcripts of Human and Assistant, taken as "
            "plain text; dataset_format=hh reads them as messages."
        )
    return rows


def _with_plain_messages(rows: Dataset) -> Dataset:
    from datasets import Value

    def is_plain(kind: Any) -> bool:  # without parts and calls
        turn = getattr(kind, "feature", None)
        if isinstance(kind, Value) or not isinstance(turn, dict):
            return isinstance(kind, Value)
        return isinstance(turn.get("content"), Value) and "tool_calls" not in turn

    spoken = [rows.features[name] for name in TEXT_COLUMNS if name in rows.column_names]
    return rows if all(map(is_plain, spoken)) else to_dataset(rows.to_list())
