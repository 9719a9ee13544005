"""Lengths of rows: how many a bin holds, and what a limit would cut or drop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recipes.lib.data.formats import Format

if TYPE_CHECKING:
    from recipes.lib.data.tokenization import Tokens

MOST_BINS = 10


@dataclass(frozen=True)
class Length:
    """Of one row, in tokens or characters: its longest sequence, and what is before the loss."""

    whole: int
    prompt: int
    sides: tuple[tuple[int, int], ...] = ()  # of a pair: each side, and what is before it for KTO
    has_loss: bool = True  # whether a token of every sequence is learned


@dataclass(frozen=True)
class LengthBin:
    """Rows of similar length."""

    low: int
    high: int  # included
    count: int


def row_length(found: Sequence[Tokens]) -> Length:
    """Length of a row in tokens.

    Args:
        found: The sequences that the row gives.

    Returns:
        Of its longest sequence, with both sides of a pair.
    """
    starts = [seen.has_loss.index(True) if True in seen.has_loss else 0 for seen in found]
    sides = tuple((len(seen.ids), seen.start) for seen in found) if len(found) > 1 else ()
    has_loss = all(True in seen.has_loss for seen in found)
    return Length(max(len(seen.ids) for seen in found), max(starts), sides, has_loss)


def length_bins(lengths: Sequence[int]) -> list[LengthBin]:
    """Count rows by length, in bins of equal and round width.

    Args:
        lengths: At least one.

    Returns:
        Bins from the shortest to the longest row, empty ones between them included.
    """
    width = _round_up((max(lengths) - min(lengths) + 1) / MOST_BINS)
    start = min(lengths) // width * width
    counts = Counter((length - start) // width for length in lengths)
    return [
        LengthBin(start + place * width, start + (place + 1) * width - 1, counts[place])
        for place in range(max(counts) + 1)
    ]


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50 and so on."""
    if width <= 1:
        return 1
    scale = 10 ** math.floor(math.log10(width))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= width)


def limit_effects(lengths: Sequence[Length], limit: int, shape: Format) -> list[str]:
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
        told = f"{long:,} prompts are longer than {limit}"
        return [
            f"{told}: ppo refuses them (max_prompt_length)",
            "rloo, grpo: no prompt is cut; with its completion it has to fit the model's context",
        ]
    reward = f"reward: {long:,} rows are dropped as too long"
    if "ranks" in shape.columns:
        return [reward]
    if "chosen" not in shape.columns:
        told = _cut([(length.whole, length.prompt) for length in lengths], limit, "rows")
        return [told, reward] if "reward" in shape.recipes else [told]
    pairs = _cut([(length.whole, length.prompt) for length in lengths], limit, "rows")
    sides = _cut([side for length in lengths for side in length.sides], limit, "of its rows")
    return [
        f"dpo: {pairs}",
        f"kto, which makes two rows of a pair: {sides}",
        reward,
    ]


def _cut(lengths: Sequence[tuple[int, int]], limit: int, what: str) -> str:
    full = sum(prompt >= limit for _, prompt in lengths)
    cut = sum(whole > limit > prompt for whole, prompt in lengths)
    told = f"{cut:,} {what} are cut at {limit} tokens"
    return f"{told}; {full:,} are dropped, because their prompt alone fills it" if full else told


def quantile(lengths: Sequence[int], share: float) -> int:
    """The length that a share of the rows does not exceed.

    Args:
        lengths: At least one.
        share: From 0 to 1.

    Returns:
        One of the lengths.
    """
    return sorted(lengths)[max(0, math.ceil(share * len(lengths)) - 1)]
