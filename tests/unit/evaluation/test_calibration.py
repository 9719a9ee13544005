"""Calibration maths against hand-worked values, scikit-learn and a known world."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from recipes.lib.evaluation.calibration import (
    calibration_error,
    confidences,
    reliability,
    suitable_bins,
    wilson,
)

LN3, LN9 = math.log(3), math.log(9)  # sigmoid(ln 3) = 3/4, sigmoid(ln 9) = 9/10


def test_confidence_is_the_sigmoid_of_the_distance_whatever_its_sign() -> None:
    assert confidences([0.0, LN3, -LN3, LN9]) == pytest.approx([0.5, 0.75, 0.75, 0.9])


def test_two_bins_of_two_pairs_equal_the_hand_worked_ones() -> None:
    # Sorted by confidence: {0.75 right, 0.75 wrong} and {0.9 right, 0.9 right}.
    first, second = reliability([LN9, LN3, LN9, -LN3], num_bins=2)
    assert (first.confidence, first.observed, first.count) == pytest.approx((0.75, 0.5, 2))
    assert (second.confidence, second.observed, second.count) == pytest.approx((0.9, 1.0, 2))
    # ECE = 2/4 * |0.5 - 0.75| + 2/4 * |1 - 0.9| = 0.125 + 0.05
    assert calibration_error([first, second]) == pytest.approx(0.175)


def test_calibration_error_weighs_bins_by_their_count() -> None:
    # Three pairs in two bins: two at 0.75 (one right), one at 0.9 (right).
    bins = reliability([LN3, -LN3, LN9], num_bins=2)
    assert [entry.count for entry in bins] == [2, 1]
    # 2/3 * |0.5 - 0.75| + 1/3 * |1 - 0.9| = 0.5/3 + 0.1/3 = 0.2
    assert calibration_error(bins) == pytest.approx(0.2)


def test_a_tie_counts_as_not_foreseen() -> None:
    (only,) = reliability([0.0, 0.0], num_bins=1)
    assert (only.confidence, only.observed) == (0.5, 0.0)


def test_wilson_interval_of_one_in_two_equals_the_hand_worked_one() -> None:
    # z = 1.959964: centre 1/2, half width z / (1 + z^2 / 2) * sqrt(1/8 + z^2 / 16) = 0.405470
    assert wilson(1, 2) == pytest.approx((0.094530, 0.905470), abs=2e-6)


def test_wilson_interval_of_all_right_still_leaves_room_for_errors() -> None:
    # All of n right: low = n / (n + z^2) = 10 / 13.841459
    assert wilson(10, 10) == pytest.approx((10 / 13.841459, 1.0), abs=1e-6)


def test_bins_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0.7, 2.0, size=200)
    truth, forecast = calibration_curve(
        margins > 0, 1 / (1 + np.exp(-np.abs(margins))), n_bins=10, strategy="quantile"
    )
    bins = reliability(margins.tolist(), num_bins=10)
    assert [entry.count for entry in bins] == [20] * 10
    assert [entry.observed for entry in bins] == pytest.approx(truth)
    assert [entry.confidence for entry in bins] == pytest.approx(forecast)
    assert calibration_error(bins) == pytest.approx(np.mean(np.abs(truth - forecast)))


def test_a_world_that_follows_its_margins_is_calibrated_and_a_louder_model_is_not() -> None:
    rng = np.random.default_rng(1)
    size = np.abs(rng.normal(0, 2, size=20_000))
    margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-size)), size, -size)
    bins = reliability(margins.tolist(), num_bins=10)
    # The standard error of a bin's share is at most sqrt(0.25 / 2000) = 0.011.
    assert calibration_error(bins) < 0.015
    assert all(entry.low - 0.02 < entry.confidence < entry.high + 0.02 for entry in bins)
    assert calibration_error(reliability((3 * margins).tolist(), num_bins=10)) > 0.08


@pytest.mark.parametrize("num_bins", [0, 4])
def test_more_bins_than_pairs_or_none_are_refused(num_bins: int) -> None:
    with pytest.raises(ValueError, match=f"num_bins={num_bins} with 3 pairs"):
        reliability([1.0, 2.0, 3.0], num_bins)


@pytest.mark.parametrize(
    ("num_pairs", "num_bins"), [(0, 0), (39, 0), (40, 2), (199, 9), (200, 10), (10_000, 10)]
)
def test_a_plot_has_twenty_pairs_in_a_bin_and_ten_bins_at_most(
    num_pairs: int, num_bins: int
) -> None:
    assert suitable_bins(num_pairs) == num_bins
