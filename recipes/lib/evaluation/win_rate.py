"""The one definition of a win rate: paired scores, ties count half, bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95  # mass of an interval


@dataclass(frozen=True)
class WinRate:
    """Share of pairs that the first of two contestants wins, with its interval.

    All are fractions in 0..1.
    """

    value: float
    low: float
    high: float


def win_rate(
    scores: Sequence[float],
    baseline_scores: Sequence[float],
    *,
    seed: int = 0,
    num_resamples: int = 9999,
) -> WinRate:
    """Share of pairs in which the score beats the baseline's score on the same prompt.

    A win counts 1, a tie 0.5, a loss 0. The interval is a seeded percentile bootstrap over pairs.
    Where all pairs end alike the bootstrap has nothing to resample and would claim certainty;
    there the interval assumes that the unseen share of other outcomes is as large as the data
    still allow: with n equal outcomes at least a share q = 0.025^(1/n) of all pairs ends so, and
    the rest is taken to be losses (low) or wins (high).

    Returns:
        The win rate and its 95 % interval, fractions in 0..1.

    Raises:
        ValueError: no pairs, different lengths, or a score that is not finite.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; the interval
        of equal outcomes is Clopper & Pearson, Biometrika 26, 1934, at its two ends.
    """
    shares = outcomes(scores, baseline_scores)
    interval = mean_interval(shares, (0.0, 1.0), seed, num_resamples)
    return WinRate(float(shares.mean()), *interval)


def mean_interval(
    values: NDArray[np.float64],
    bounds: tuple[float, float],
    seed: int = 0,
    num_resamples: int = 9999,
) -> tuple[float, float]:
    """Ends of the interval of a mean, as of `win_rate`.

    `bounds` are the smallest and largest that a value could be; they count where all are equal.
    """
    if np.ptp(values) == 0:
        value, seen = float(values.mean()), ((1 - CONFIDENCE) / 2) ** (1 / len(values))
        return bounds[0] + (value - bounds[0]) * seen, bounds[1] - seen * (bounds[1] - value)
    # SciPy takes a fifth of a second to import, which `rlhf --help` does not have.
    from scipy.stats import bootstrap

    interval = bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=num_resamples,
        method="percentile",
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def smallest_difference(num_prompts: int) -> float:
    """How far from 0.5 a win rate has to be for so many prompts to find it in 80 % of cases.

    Returns:
        The difference at which a two-sided test at 5 % has a power of 0.8, without ties; at most
        0.5, which it says, too, of prompts that are too few for any.

    Source: Fleiss, Statistical Methods for Rates and Proportions, 1981, chapter 1: the difference d
        solves d sqrt(n) = 1.96 sqrt(1/4) + 0.84 sqrt(1/4 - d^2).
    """
    error, power, scale = 1.959964 / 2, 0.841621, num_prompts + 0.841621**2
    middle = error * math.sqrt(num_prompts) / scale
    rest = middle**2 - (error**2 - power**2 / 4) / scale
    return min(middle + math.sqrt(max(rest, 0.0)), 0.5)


def pair_accuracy(chosen_scores: Sequence[float], rejected_scores: Sequence[float]) -> float:
    """Share of pairs whose chosen side scores higher, in 0..1; ties count half.

    Raises:
        ValueError: no pairs, different lengths, or a score that is not finite.
    """
    return float(outcomes(chosen_scores, rejected_scores).mean())


def outcomes(scores: Sequence[float], baseline_scores: Sequence[float]) -> NDArray[np.float64]:
    """1 where a score is the higher one, 0.5 where both are equal, 0 where it is the lower one.

    Raises:
        ValueError: no pairs, different lengths, or a score that is not finite.
    """
    if len(scores) != len(baseline_scores) or not len(scores):
        raise ValueError(
            f"win rate of {len(scores)} scores against {len(baseline_scores)}: "
            "give one score per prompt and side, and at least one prompt."
        )
    difference = np.asarray(scores, dtype=float) - np.asarray(baseline_scores, dtype=float)
    for row, value in enumerate(difference):
        if not math.isfinite(value):
            raise ValueError(
                f"row {row}: scores {scores[row]} and {baseline_scores[row]} cannot be compared; "
                "every score must be a finite number."
            )
    return np.asarray((np.sign(difference) + 1) / 2)
