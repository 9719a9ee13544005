"""Rewards that are asked at evaluations alone: their metrics, and when they part from training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from recipes.lib.errors import UserError

HELD_OUT = "held_out/"
NUM_ERRORS = 3.0  # standard errors of a difference that a fall has to pass, twice in a row


def held_out_metrics(
    names: Sequence[str], said: Sequence[tuple[Any, Sequence[float]]]
) -> dict[str, float]:
    """What held-out rewards say, over prompts: several completions of one are not independent.

    Args:
        names: Names of the reward functions.
        said: Of each completion its prompt and what each function said, NaN where it said None.

    Returns:
        Of each function that said anything the mean, and of two prompts or more its ..._stderr.
    """
    metrics: dict[str, float] = {}
    for place, name in enumerate(names):
        of_prompt: dict[Any, list[float]] = {}
        for prompt, values in said:
            if not math.isnan(values[place]):
                of_prompt.setdefault(prompt, []).append(values[place])
        means = [fmean(values) for values in of_prompt.values()]
        metrics |= {HELD_OUT + name: fmean(means)} if means else {}
        if len(means) > 1:
            metrics[f"{HELD_OUT}{name}_stderr"] = stdev(means) / math.sqrt(len(means))
    return metrics


def check_best_metric(metric: str | None, names: Sequence[str]) -> None:
    """Refuse a metric_for_best_model of a held-out reward that there is not, before training."""
    _, mark, name = (metric or "").partition(HELD_OUT)
    if mark and name not in names:
        raise UserError(
            f"metric_for_best_model={metric}: eval_reward_funcs has no such reward; it has "
            f"{', '.join(names) or 'none'}."
        )


def parting(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where the reward that is trained on rose and a held-out one fell beyond its error.

    Of evaluations without any change, with noise of their own each, 2 % of runs with 40 of them are
    told of.

    Returns:
        The first such evaluation of a run's logs: kind, step and message; None without any.
    """
    asked_for = (key for row in rows for key in row if HELD_OUT in key)
    for key in dict.fromkeys(key for key in asked_for if not key.endswith("_stderr")):
        start, _, name = key.partition(HELD_OUT)
        scores = (f"{start}scores", f"{start}reward")
        asked = [row for row in rows if f"{key}_stderr" in row and {*scores} & row.keys()]
        if not asked:
            continue
        score = next(one for one in scores if one in asked[0])
        highest, was_low = asked[0], False
        for row in asked:
            error = NUM_ERRORS * math.hypot(highest[f"{key}_stderr"], row[f"{key}_stderr"])
            is_low = row[score] > highest[score] and row[key] < highest[key] - error
            if is_low and was_low:
                message = (
                    f"held-out {name} fell from {highest[key]:.3g} (step {highest['step']}) to "
                    f"{row[key]:.3g} while the reward rose: it is fooled. Stop earlier, or set "
                    "load_best_model_at_end."
                )
                return {"kind": "held_out", "step": row["step"], "message": message}
            was_low, highest = is_low, max(highest, row, key=lambda one: one[key])
    return None
