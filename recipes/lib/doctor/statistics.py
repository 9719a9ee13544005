"""The statistics that checks share."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray
LEAST_PAIRS = 40  # by which a run may be stopped; those of few texts hang together


def outcomes(margins: Array) -> Array:
    """1 where the chosen one scores higher, 0 where the rejected one does, 0.5 for a tie."""
    return (np.sign(margins) + 1) / 2


def interval(outcome: Array) -> tuple[float, float]:
    """95 % Wilson interval of a mean of outcomes; of two ties one counts."""
    from recipes.lib.evaluation.calibration import wilson

    return wilson(math.floor(outcome.sum()), len(outcome))


def mean_interval(values: Array) -> tuple[float, float]:
    """Mean less and plus two standard errors."""
    error = 2 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()) - error, float(values.mean()) + error


def rank_correlation(one: Array, other: Array) -> float:
    """Spearman's; 0 where one of them does not vary."""
    from scipy.stats import spearmanr

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)


def largest(found: dict[str, float]) -> tuple[str, float]:
    """The largest of some numbers, with its name."""
    worst = max(found, key=lambda name: found[name])
    return worst, found[worst]
