"""Logistic regression of shares of wins, on many resamples at once, and rankings; always finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def resample(num_prompts: int, num_resamples: int, seed: int) -> Table:
    """How often each prompt counts, by bootstrap resample; the first are the data themselves."""
    chances = np.full(num_prompts, 1 / num_prompts)
    drawn = np.random.default_rng(seed).multinomial(num_prompts, chances, num_resamples)
    return np.vstack([np.ones(num_prompts), drawn])


def bradley_terry(
    names: Sequence[str],
    shares: Mapping[tuple[int, int], Sequence[float | None]],
    *,
    seed: int = 0,
    num_resamples: int = 999,
) -> dict[str, dict[str, Any]]:
    """Rank contestants by their comparisons; a tie is half a win.

    `shares` are, for each two by their places, the first one's of the win on each prompt; None
    where nobody judged. The bootstrap over prompts keeps together what was said of one prompt.

    Returns:
        By name, the best first: strength, log-odds against an average one (one beats another with
        the logistic function of their difference), its 95 % interval strength_ci95, and win_rate
        over all others, on the prompts that were judged.

    Source: Bradley and Terry, Rank analysis of incomplete block designs, Biometrika 39, 1952.
    """
    table_PN = np.array([list(row) for row in shares.values()], dtype=float)  # None becomes NaN
    features_PC = np.zeros((len(shares), len(names)))
    for row, (one, other) in enumerate(shares):
        features_PC[row, [one, other]] = 1, -1
    weights_BN = resample(table_PN.shape[1], num_resamples, seed)
    games_BP = weights_BN @ ~np.isnan(table_PN).T
    wins_BP = weights_BN @ np.nan_to_num(table_PN).T
    fitted_BC = fit_logistic(features_PC, wins_BP / np.maximum(games_BP, 1), games_BP)
    ends_CE = np.quantile(fitted_BC[1:], (0.025, 0.975), axis=0).T
    won_C = wins_BP[0] @ (features_PC > 0) + (games_BP[0] - wins_BP[0]) @ (features_PC < 0)
    rates_C = won_C / np.maximum(games_BP[0] @ np.abs(features_PC), 1)
    return {
        names[place]: {
            "strength": float(fitted_BC[0, place]),
            "strength_ci95": ends_CE[place].tolist(),
            "win_rate": float(rates_C[place]),
        }
        for place in np.argsort(-fitted_BC[0], kind="stable")
    }
