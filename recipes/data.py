"""Shows data as training will see it: format, faults, lengths, and rows with their loss mask.

What is printed: the format that was understood and the recipes that take it, columns, rows, rows
that cannot be used, rows that are there twice, a plot of lengths, what a max_length would cut or
drop, and the first rows as tokens with the loss mask (with model_name_or_path; else as text).
Nothing is written.

    rlhf data pairs.jsonl
    rlhf data chats.json --dataset_format sharegpt --model_name_or_path Qwen/Qwen3-0.6B
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments, check_data
from recipes.lib.data.loading import read_rows
from recipes.lib.data.problems import PLACE, brief_place, named_columns, places_of
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import TemplateArguments, set_chat_template
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.main import launch

if TYPE_CHECKING:
    from datasets import Dataset

    from recipes.lib.data.formats import Format
    from recipes.lib.data.lengths import Length
    from recipes.lib.data.preview import Page

POSITIONAL = "dataset_name"
INSTEAD = ("datasets",)


@dataclass(kw_only=True)
class DataPageArguments(DataArguments, TrustArguments, TemplateArguments):
    """Keys of the recipe beside those of the data."""

    model_name_or_path: str | None = option(
        None, "Model whose tokenizer counts: a run, a folder, a Hub id."
    )
    model_revision: str = option("main", "Revision of a model on the Hub.")
    chat_template_path: str | None = option(
        None, "Chat template (.jinja) instead of the tokenizer's own."
    )
    assistant_only_loss: bool = option(False, "Of messages: loss on the assistant's tokens alone.")
    max_length: int | None = option(None, "Say what this limit, in tokens, would cut or drop.")
    num_samples: int = option(3, "Rows to show.")
    max_rows: int | None = option(
        None, "Read the first so many rows of each dataset alone, not all of them."
    )
    num_measured: int = option(10_000, "Measure the lengths of the first so many rows.")
    seed: int = option(0, "Of the split that test_fraction makes.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (DataPageArguments,)


def check_keys(script: DataPageArguments) -> None:
    """Check the keys before anything is read.

    Raises:
        UserError: Keys of the data contradict each other, or a key needs a tokenizer.
    """
    check_data(script)
    for key in ("max_length", "chat_template", "chat_template_path", "assistant_only_loss"):
        if getattr(script, key) and not script.model_name_or_path:
            raise UserError(
                f"{key}={getattr(script, key)}: tokens are counted by a tokenizer; name its model "
                "with model_name_or_path."
            )


def unchecked_rows(script: DataPageArguments) -> tuple[Dataset, Dataset | None]:
    """Training and test rows, unchecked; of a stream, or with max_rows, the first ones alone."""
    from recipes.lib.data.streaming import HEAD_ROWS, first_rows, note_large_files

    if script.max_rows is None and not script.streaming:
        note_large_files(script)
        return read_rows(script, script.seed)
    return first_rows(script, script.max_rows or HEAD_ROWS), None


def tokenizer_of(script: DataPageArguments) -> Any:
    """The tokenizer with the chat template to use, or None."""
    if script.model_name_or_path is None:
        return None
    from recipes.lib.models.chat_template import read_template
    from recipes.lib.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(
        script.model_name_or_path,
        revision=script.model_revision,
        trust_remote_code=script.trust_remote_code,
    )
    set_chat_template(tokenizer, script.chat_template, script.chat_template_path)
    if script.chat_template_path is not None:
        tokenizer.chat_template = read_template(script.chat_template_path)
    return tokenizer


def shown_pictures(script: DataPageArguments, rows: Any) -> Any:
    """The rows with their pictures, undecoded, where the model reads them."""
    from recipes.lib.models.vision import reads_pictures
    from recipes.lib.pictures.files import IMAGE, IMAGES, with_pictures

    if script.model_name_or_path is None or rows is None:
        return rows
    if not {IMAGE, IMAGES} & {*rows.column_names}:
        return rows
    is_seen = reads_pictures(script, trust_remote_code=script.trust_remote_code)
    return with_pictures(rows, places_of(rows)) if is_seen else rows


def picture_facts(rows: Dataset) -> dict[str, list[str]]:
    """In words: how many pictures there are, and how large."""
    from recipes.lib.pictures.files import IMAGES, open_picture, pictured

    if not pictured(rows):
        return {}
    every = [one for some in rows[IMAGES] for one in some]
    if not every:
        return {"pictures": ["none"]}
    sizes = sorted(open_picture(one).size for one in every)
    told = f"{len(every):,} in {len(rows):,} rows"
    smallest, largest = ("{} by {}".format(*size) for size in (sizes[0], sizes[-1]))
    return {"pictures": [f"{told}, {smallest} to {largest} pixels; their tokens are not counted"]}


def usable_rows(train: Dataset, shape: Format) -> tuple[Dataset, list[str]]:
    """The rows that training could use, and in words what is wrong with the others."""
    from recipes.lib.data.row_checks import find_problems
    from recipes.lib.pictures.files import IMAGES, pictured

    seen = [IMAGES] if pictured(train) else []
    problems, places = find_problems(train, [*shape.columns, *seen]), places_of(train)
    bad = {row for problem in problems for row in problem.rows}
    told = [
        f"{problem.what.rstrip(',')}: {len(problem.rows):,}, first in {places[problem.rows[0]]}"
        for problem in problems
    ]
    if not bad:
        return train, []
    good = train.select([row for row in range(len(train)) if row not in bad])
    return good, [f"{len(bad):,} of {len(train):,}", *told]


def describe_repeated(train: Dataset, test: Dataset | None) -> list[str]:
    """In words: rows that are there twice, and what both splits share."""
    from recipes.lib.data.splitting import content_keys

    keys = list(content_keys(train))
    found = [f"{len(keys) - len(set(keys)):,} training rows repeat an earlier one"]
    if test is not None:
        shared = len(set(keys).intersection(content_keys(test)))
        found.append(f"{shared:,} test rows are also training rows")
        if "prompt" in train.column_names and "prompt" in test.column_names:
            known = set(map(repr, train["prompt"]))
            same = sum(repr(prompt) in known for prompt in test["prompt"])
            found.append(f"{same:,} test rows have the prompt of a training row")
    return [line for line in found if not line.startswith("0 ")] or ["none"]


def measure(
    script: DataPageArguments, rows: Dataset, shape: Format, tokenizer: Any
) -> list[Length]:
    """Lengths of the first rows: tokens, or characters where there is no tokenizer."""
    from recipes.lib.data.lengths import Length, row_length
    from recipes.lib.data.preview import texts_of_row, token_rows

    few = rows.select(range(min(script.num_measured, len(rows))))
    if tokenizer is None:
        return [Length(sum(len(text) for _, text in texts_of_row(row, shape)), 0) for row in few]
    only = script.assistant_only_loss
    return [row_length(token_rows(row, shape, tokenizer, only)) for row in few]


def lost_facts(rows: Dataset, tokenizer: Any, shape: Format) -> dict[str, list[str]]:
    """In words: characters that the tokenizer has no token for."""
    from recipes.lib.data.tokenizer_fit import count_lost, describe_lost

    lost, touched, problems = count_lost(rows, tokenizer, shape.columns)
    told = [f"{problem.what}: {len(problem.rows):,} bad rows" for problem in problems]
    if not lost:
        return {}
    return {"lost": [describe_lost(lost, len(touched), places_of(rows)[touched[0]]), *told]}


def length_facts(
    page: Page, lengths: list[Length], shape: Format, model: str | None, places: Sequence[str]
) -> None:
    """Put lengths, their plot and the effect of a limit on the page."""
    from recipes.lib.data.lengths import length_bins, limit_effects, quantile

    silent = [row for row, length in enumerate(lengths) if not length.has_loss]
    if silent and shape.columns != ("prompt",):
        page.facts["no loss"] = [
            f"{len(silent):,} rows have no token to learn from, first {places[silent[0]]}"
        ]
    numbers = [length.whole for length in lengths]
    page.unit = "tokens" if model else "characters"
    page.bins = length_bins(numbers)
    middle, most = quantile(numbers, 0.5), quantile(numbers, 0.95)
    whose = f"tokens of {model}" if model else "characters; --model_name_or_path counts tokens"
    page.facts["lengths"] = [
        f"in {whose}",
        f"half have at most {middle:,}, 95 % at most {most:,}, the longest {max(numbers):,}",
    ]
    if page.limit is not None:
        page.facts[f"max_length {page.limit}"] = limit_effects(lengths, page.limit, shape)


def run(config: Config) -> dict[str, Any]:
    """Read the data and print what was understood.

    Args:
        config: The parsed configuration.

    Returns:
        The numbers: rows of both splits, bad rows, lengths in tokens or characters.

    Raises:
        UserError: The data cannot be read, or has none of TRL's formats.
    """
    from recipes.lib.data.formats import format_of, other_readings
    from recipes.lib.data.preview import Page, examples_of_row, show_page
    from recipes.lib.data.splitting import split_rows

    check_keys(script := config.script)
    train, test = (shown_pictures(script, rows) for rows in unchecked_rows(script))
    shape = format_of(train)
    rows, faults = usable_rows(train, shape)
    if test is None and script.test_fraction > 0:
        rows, test = split_rows(rows, script.test_fraction, script.seed)
    numbers: dict[str, Any] = {"num_train": len(rows), "num_test": len(test or [])}
    tokenizer = tokenizer_of(script)
    page = Page(title=", ".join(script.data_names()), limit=script.max_length)
    first = (rows if len(rows) else train)[0]
    kind = "messages" if isinstance(first[shape.columns[0]], list) else "text"
    others = [name for name in named_columns(train) if name not in shape.columns]
    counts = [f"{len(rows):,} to train on, {numbers['num_test']:,} to test on"]
    if script.max_rows is not None or script.streaming:
        counts.append("the first ones alone: what stands behind them was not read")
    page.facts = {
        "format": [f"{shape.name}, {kind}", f"for {', '.join(shape.recipes)}"],
        "or as": other_readings(named_columns(train), first) or ["nothing else"],
        "columns": [", ".join(shape.columns)] + ([f"and {', '.join(others)}"] if others else []),
        "rows": counts,
        "bad rows": faults or ["none"],
        "repeated": describe_repeated(rows, test),
    }
    if tokenizer is not None:
        page.facts |= lost_facts(rows, tokenizer, shape) | picture_facts(rows)
    lengths = measure(script, rows, shape, tokenizer)
    if lengths:
        length_facts(page, lengths, shape, script.model_name_or_path, places_of(rows))
        for row in rows.select(range(min(script.num_samples, len(rows)))):
            place, only = brief_place(row[PLACE], script.label), script.assistant_only_loss
            page.examples += examples_of_row(place, row, shape, tokenizer, only)
    show_page(page)
    numbers |= {"num_bad": len(train) - len(rows), "unit": page.unit, "format": shape.name}
    return {"recipe": "data", "recipes": list(shape.recipes)} | numbers


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("data", argv)


if __name__ == "__main__":
    raise SystemExit(main())
