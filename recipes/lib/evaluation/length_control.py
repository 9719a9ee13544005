"""The win rate that would be, were both completions of equal length.

Source: Dubois, Galambosi, Liang and Hashimoto, Length-controlled AlpacaEval, 2024: the share of a
win is regressed on the contestant, tanh of the standardised difference of the lengths, and how hard
the prompt is; then the difference is set to 0. What they take from their leaderboard is not at
hand here: the difficulty comes from the contestants on the same prompts, so of a single one there
is none, and their two rewritten baselines, which hold the effect of length, are left out.
"""

from __future__ import annotations

import numpy as np

from recipes.lib.evaluation.logistic import Table, fit_logistic, logistic, resample
from recipes.lib.evaluation.win_rate import WinRate, win_rate

LEAST = 30  # prompts
# Inverse variance of the prior of a difficulty. Weak, for few contestants shrink it much anyway.
SHRINKAGE = 0.1


def length_controlled(
    shares_CN: Table,
    lengths_CN: Table,
    baseline_lengths_N: Table,
    *,
    seed: int = 0,
    num_resamples: int = 999,
) -> list[WinRate] | None:
    """Length-controlled win rates of contestants against one baseline, on the same prompts.

    The bootstrap over prompts keeps the difficulties and the scale of length.

    Args:
        shares_CN: Share of the win over the baseline, 0..1, by contestant and prompt.
        lengths_CN: Lengths of their completions, in any unit.
        baseline_lengths_N: Lengths of the baseline's, in the same unit.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.

    Returns:
        Win rates with 95 % intervals, in 0..1; None of fewer than 30 prompts. Where all prompts end
        alike, or no length differs, there is nothing to control for, and it is the win rate.
    """
    num_prompts = shares_CN.shape[1]
    if num_prompts < LEAST:
        return None
    gaps_CN = lengths_CN - baseline_lengths_N
    spread_C1 = gaps_CN.std(1, ddof=1, keepdims=True)
    gaps_CN = np.tanh(gaps_CN / np.where(spread_C1 > 0, spread_C1, 1))
    difficulty_NK = _difficulties(shares_CN, gaps_CN)
    weights_BN = resample(num_prompts, num_resamples, seed)
    made = []
    for shares_N, gaps_N in zip(shares_CN, gaps_CN, strict=True):
        if np.ptp(shares_N) == 0 or not gaps_N.any():
            made.append(win_rate(list(shares_N), [0.5] * num_prompts, seed=seed))
            continue
        features_NF = np.column_stack([np.ones(num_prompts), difficulty_NK, gaps_N])
        fitted_BF = fit_logistic(features_NF, shares_N[None], weights_BN)
        equal_BN = logistic(fitted_BF[:, :-1] @ features_NF[:, :-1].T)
        rates_B = (weights_BN * equal_BN).sum(1) / num_prompts
        low, high = np.quantile(rates_B[1:], (0.025, 0.975))
        made.append(WinRate(float(rates_B[0]), float(low), float(high)))
    return made


def _difficulties(shares_CN: Table, gaps_CN: Table) -> Table:
    """What all contestants have in common on a prompt, one column; of a single one no column."""
    num, num_prompts = shares_CN.shape
    if num == 1:
        return np.empty((num_prompts, 0))
    from scipy.optimize import minimize

    def loss(values: Table) -> tuple[float, Table]:
        common_N = values[num + 1 :]
        logits_CN = values[:num, None] + values[num] * gaps_CN + common_N
        errors_CN = logistic(logits_CN) - shares_CN
        told = (np.logaddexp(0, logits_CN) - shares_CN * logits_CN).sum()
        slopes = [errors_CN.sum(1), [(errors_CN * gaps_CN).sum()]]
        slopes += [errors_CN.sum(0) + SHRINKAGE * common_N]
        return told + SHRINKAGE / 2 * common_N @ common_N, np.concatenate(slopes)

    found = minimize(
        loss, np.zeros(num + 1 + num_prompts), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    return np.asarray(found.x[num + 1 :, None])
