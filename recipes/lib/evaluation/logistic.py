"""Logistic regression of shares of wins, on many resamples at once; always finite."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Table = NDArray[np.float64]

RIDGE = 1e-2  # keeps what the data leave open finite, and moves nothing that they tell
NUM_STEPS, TOLERANCE = 200, 1e-9  # at most, and the change of a coefficient that ends them


def logistic(logits: ArrayLike) -> Table:
    """The logistic function, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(np.asarray(logits) / 2)))


def fit_logistic(features_RF: Table, shares_BR: Table, weights_BR: Table) -> Table:
    """Fit coefficients by maximum likelihood with a faint ridge.

    Args:
        features_RF: Features of each row; there is no other intercept.
        shares_BR: Share of the win in each row, 0..1, by resample.
        weights_BR: How often each row counts, by resample.

    Returns:
        Coefficients by resample, finite also where wins and losses can be told apart.

    Source: Newton's method; a step is no longer than 1, so that none overshoots.
    """
    num_features = features_RF.shape[1]
    products_RFF = features_RF[:, :, None] * features_RF[:, None, :]
    fitted_BF = np.zeros((len(weights_BR), num_features))
    for _ in range(NUM_STEPS):
        expected_BR = logistic(fitted_BF @ features_RF.T)
        slope_BF = (weights_BR * (shares_BR - expected_BR)) @ features_RF - RIDGE * fitted_BF
        spread_BR = weights_BR * expected_BR * (1 - expected_BR)
        curvature_BFF = np.tensordot(spread_BR, products_RFF, 1) + RIDGE * np.eye(num_features)
        step_BF = np.linalg.solve(curvature_BFF, slope_BF[:, :, None])[:, :, 0]
        step_BF /= np.maximum(np.linalg.norm(step_BF, axis=1, keepdims=True), 1)
        fitted_BF += step_BF
        if np.abs(step_BF).max() < TOLERANCE:
            break
    return fitted_BF
