"""Win rates of parts of the prompts: by the values of a column, or the quarters of a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.lib.errors import UserError

LENGTH = "length"  # in tokens, of the run's completion
MOST = 20  # values of a column; more are names and not kinds
PARTS = 4  # quarters of a number with more values than that
ERROR = 0.05  # of all intervals together
FALSE = 0.025  # share of tables without a difference in which any is told
NUM_DRAWS = 1999  # permutations


def slices_of(names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> dict[str, list[int]]:
    """Which prompts belong to which slice of the named columns; without a value, to none.

    Returns:
        Places of prompts by the name of their slice, `column: value` or `column: low to high`.

    Raises:
        UserError: There is no such column, or its values are neither numbers nor few.
    """
    found: dict[str, list[int]] = {}
    for name in names:
        if name not in columns:
            known = ", ".join([LENGTH, *columns])
            raise UserError(f"slices={name}: the data has no such column; it has {known}.")
        values = {row: one for row, one in enumerate(columns[name]) if one is not None}
        numbers = [one for one in values.values() if type(one) in (int, float)]
        if len(numbers) == len(values) and len({*numbers}) > PARTS:
            edges = np.quantile(numbers, np.arange(1, PARTS) / PARTS)
            places = np.searchsorted(edges, numbers)
            for place in np.unique(places):
                rows = [row for row, own in zip(values, places, strict=True) if own == place]
                kept = [values[row] for row in rows]
                found[f"{name}: {min(kept):g} to {max(kept):g}"] = rows
            continue
        texts = {row: str(one) for row, one in values.items()}
        if len({*texts.values()}) > MOST:
            raise UserError(
                f"slices={name}: the column has {len({*texts.values()})} values; name one with at "
                f"most {MOST}, or with numbers, which are cut into quarters."
            )
        for text in sorted({*texts.values()}):
            found[f"{name}: {text}"] = [row for row, one in texts.items() if one == text]
    return found


def sliced(
    shares: Sequence[float | None], slices: Mapping[str, Sequence[int]], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Win rate of each slice, and whether it differs from that of the other prompts.

    The intervals hold all at once with 95 %: Bonferroni's correction, each with 1 - 0.05 / number
    of slices, because slices of two columns share prompts in any way, and it asks for no
    independence. They are Wilson's, which hold for the few prompts of a slice, where a bootstrap is
    too narrow; ties make them too wide, never too narrow. What differs is found by permuting the
    shares among the prompts: where nothing differs, one table in forty tells of any slice.

    Args:
        shares: Share of the win on each prompt, 0..1; None where nobody judged.
        slices: Places of prompts by name.
        seed: Of the permutations.

    Returns:
        By slice with a judged prompt num_prompts, win_rate, win_rate_ci95 and differs.

    Source: Wilson, Journal of the American Statistical Association 22, 1927; Westfall and Young,
        Resampling-based multiple testing, 1993 (the largest statistic of a permutation).
    """
    from scipy.stats import norm

    rows = [row for row, share in enumerate(shares) if share is not None]
    shares_N = np.array([shares[row] for row in rows], dtype=float)
    members = {name: np.isin(rows, places) for name, places in slices.items()}
    members = {name: one for name, one in members.items() if one.any()}
    if not members:
        return {}
    members_SN = np.array([*members.values()])
    sizes_S = members_SN.sum(1)
    shuffled_BN = np.random.default_rng(seed).permuted(np.tile(shares_N, (NUM_DRAWS, 1)), axis=1)
    gaps_BS = np.vstack([shares_N, shuffled_BN]) @ members_SN.T / sizes_S - shares_N.mean()
    # The spread of a slice's mean among permutations; a slice of all prompts has none.
    gaps_BS = np.abs(gaps_BS) / np.sqrt(np.maximum(1 / sizes_S - 1 / len(rows), 1e-12))
    limit = np.quantile(gaps_BS[1:].max(1), 1 - FALSE)
    z = float(norm.isf(ERROR / len(members) / 2))
    made: dict[str, dict[str, Any]] = {}
    for name, member_N, gap in zip(members, members_SN, gaps_BS[0], strict=True):
        number, rate = int(member_N.sum()), float(shares_N[member_N].mean())
        center = (rate + z * z / (2 * number)) / (1 + z * z / number)
        half = math.sqrt(rate * (1 - rate) / number + (z / (2 * number)) ** 2)
        half *= z / (1 + z * z / number)
        made[name] = {"num_prompts": number, "win_rate": rate}
        made[name]["win_rate_ci95"] = [center - half, center + half]
        made[name]["differs"] = bool(gap > limit + 1e-9)
    return made
