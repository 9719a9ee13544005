"""Does a model know how sure it may be? Margins, reliability, calibration error.

The difference of two scores is the log-odds of a preference, so each test pair is a forecast: the
side with the higher score is preferred, with probability sigmoid(|margin|). A model is calibrated
if of its forecasts at 80 % four in five come true.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

PAIRS_PER_BIN = 20  # fewer give intervals too wide to read
MAX_BINS = 10


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of about equal confidence.

    `confidence` is their mean, `observed` the share that came true, `low` and `high` its 95 %
    Wilson interval, all fractions in 0..1; `count` is the number of pairs.
    """

    confidence: float
    observed: float
    low: float
    high: float
    count: int


def confidences(margins: Sequence[float]) -> np.ndarray:
    """Probability that the side with the higher score is preferred: sigmoid(|margin|).

    Args:
        margins: score of chosen less score of rejected, one per pair.

    Returns:
        One number in 0.5..1 per pair.

    Source: Bradley and Terry, Rank analysis of incomplete block designs, 1952, with scores as
        log-strengths.
    """
    return np.asarray(expit(np.abs(np.asarray(margins, dtype=float))))


def reliability(margins: Sequence[float], num_bins: int) -> list[Forecasts]:
    """Bins of equal count, from the least confident forecasts to the most confident.

    Args:
        margins: finite, one per test pair; a tie counts as not foreseen.
        num_bins: at most as many as there are pairs. A remainder goes one pair each to the first
            bins (scikit-learn's calibration_curve makes the same bins but keeps their counts,
            which the intervals need, to itself).

    Raises:
        ValueError: fewer pairs than bins, or no bin at all.
    """
    if not 1 <= num_bins <= len(margins):
        raise ValueError(f"num_bins={num_bins} with {len(margins)} pairs; use 1 to that many.")
    return binned(confidences(margins), np.asarray(margins, dtype=float) > 0, num_bins)


def binned(forecast: np.ndarray, came_true: np.ndarray, num_bins: int) -> list[Forecasts]:
    """Forecasts in bins as of `reliability`, from their confidence and what became of them."""
    order = np.argsort(forecast, kind="stable")
    return [_bin(forecast[part], came_true[part]) for part in np.array_split(order, num_bins)]


def calibration_error(bins: Sequence[Forecasts]) -> float:
    """Expected calibration error: the mean gap between confidence and outcome, weighted by count.

    ECE = sum over bins of count / total * |observed - confidence|, a fraction in 0..1.

    Source: Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian
        Binning, 2015.
    """
    total = sum(entry.count for entry in bins)
    return math.fsum(e.count * abs(e.observed - e.confidence) for e in bins) / total


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson interval of a share.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    from scipy.stats import binomtest  # takes most of a second, and most runs have no use for it

    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def suitable_bins(num_pairs: int) -> int:
    """Number of bins for a plot: about 20 pairs in each, 10 at most; 0 where 2 cannot be filled."""
    num_bins = min(MAX_BINS, num_pairs // PAIRS_PER_BIN)
    return num_bins if num_bins >= 2 else 0


def _bin(forecast: np.ndarray, came_true: np.ndarray) -> Forecasts:
    count, right = len(forecast), int(came_true.sum())
    return Forecasts(float(forecast.mean()), right / count, *wilson(right, count), count)
