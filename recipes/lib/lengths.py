"""Lengths of rows: how many a bin holds, and what a limit would cut or drop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.lib.shapes import Shape

NUM_BINS = 10


@dataclass(frozen=True)
class Length:
    """Of one row, in tokens or characters: its longest sequence, and what is before the loss."""

    whole: int
    prompt: int


@dataclass(frozen=True)
class Bin:
    """Rows of similar length."""

    low: int
    high: int  # included
    count: int


def bins_of(lengths: Sequence[int], num_bins: int = NUM_BINS) -> list[Bin]:
    """Count rows by length, in bins of equal and round width.

    Args:
        lengths: At least one.
        num_bins: At most so many bins.

    Returns:
        Bins from the shortest to the longest row, empty ones between them included.
    """
    width = _round_up((max(lengths) - min(lengths) + 1) / num_bins)
    start = min(lengths) // width * width
    counts: dict[int, int] = {}
    for length in lengths:
        place = (length - start) // width
        counts[place] = counts.get(place, 0) + 1
    return [
        Bin(start + place * width, start + (place + 1) * width - 1, counts.get(place, 0))
        for place in range(max(counts) + 1)
    ]


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50 and so on."""
    if width <= 1:
        return 1
    scale = 10 ** math.floor(math.log10(width))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= width)


def effects(lengths: Sequence[Length], limit: int, shape: Shape) -> list[str]:
    """What the trainers would do to rows with a limit.

    Args:
        lengths: Of the rows, in tokens.
        limit: max_length; for prompts alone, max_prompt_length.
        shape: The format of the rows.

    Returns:
        Sentences without the full stop; one if nothing happens.
    """
    long = sum(length.whole > limit for length in lengths)
    full = sum(length.prompt >= limit for length in lengths)
    if not long and not full:
        return [f"no row is longer than {limit}"]
    if shape.columns == ("prompt",):
        return [f"{long:,} prompts are longer than {limit}: ppo refuses them (max_prompt_length)"]
    told = f"{long - full:,} rows are cut at {limit} tokens"
    if full:
        told += f"; {full:,} are dropped, because their prompt alone fills it"
    if "chosen" in shape.columns:
        return [f"dpo, kto: {told}", f"reward: {long:,} rows are dropped as too long"]
    return [told]


def quantile(lengths: Sequence[int], share: float) -> int:
    """The length that a share of the rows does not exceed.

    Args:
        lengths: At least one.
        share: From 0 to 1.

    Returns:
        One of the lengths.
    """
    return sorted(lengths)[max(0, math.ceil(share * len(lengths)) - 1)]
