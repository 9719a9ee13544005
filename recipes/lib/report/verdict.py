"""The finding of a run in one sentence, computed from its numbers."""

import math
from typing import Any

import numpy as np
from scipy.special import stdtrit

from recipes.lib.evaluation.calibration import wilson
from recipes.lib.evaluation.win_rate import pair_accuracy, win_rate
from recipes.lib.report.curves import has_episodes, points
from recipes.lib.report.numbers import is_finite, percent, plain
from recipes.lib.report.pairs import differences
from recipes.lib.report.run_files import Row, RunFiles


def verdict(run: RunFiles) -> str:
    """What the page of one run says first; empty where the numbers for it are missing."""
    claims = {
        "reward": "The reward model scores the preferred completion higher",
        "dpo": "Training raised the chosen completion above the rejected one",
    }
    if run.recipe in claims:
        return _pairs(run, claims[run.recipe])
    found = {"kto": _kto, "evaluate": _evaluate, "feedback": _people, "compare": _best}
    found |= {"classify": _classes}
    found |= dict.fromkeys(("ppo", "rloo", "grpo"), _scores)
    return found.get(run.recipe, _loss)(run)


def quickstart_verdict(summary: Row) -> str:
    """Whether PPO beats SFT, on how many prompts, how sure that is and at what KL."""
    if not is_finite(summary.get("win_rate")):
        return ""
    said = _contest(
        "PPO", "SFT", float(summary["win_rate"]), summary.get("win_rate_ci95"), "unseen prompts"
    )
    kl = summary.get("kl")
    price = f", at {plain(float(kl), 1)} nats of KL" if is_finite(kl) else ""
    return f"{said} by the gold score{price}."


def _contest(first: str, second: str, rate: float, interval: Any, prompts: str) -> str:
    is_known = isinstance(interval, list | tuple) and len(interval) == 2
    low, high = interval if is_known and all(map(is_finite, interval)) else (rate, rate)
    share = f"{percent(rate)} of {prompts}"
    bounds = ""
    if is_known:
        bounds = f" (95\u00a0%\u00a0interval {plain(100 * low, 0)} to {plain(100 * high, 0)})"
    if low > 0.5:
        return f"{first} beats {second} on {share}{bounds}"
    if high < 0.5:
        return f"{first} is worse than {second}: it wins on only {share}{bounds}"
    return f"{first} and {second} cannot be told apart: {first} wins on {share}{bounds}"


def _people(run: RunFiles) -> str:
    wins = run.summary.get("preferred") or {}
    if len(wins) != 2 or not (total := sum(wins.values())):
        return ""
    (worse, _), (better, most) = sorted(wins.items(), key=lambda one: one[1])
    interval = wilson(most, total)
    return (
        _contest(better, worse, most / total, interval, f"{total} pairs shown without names") + "."
    )


def _evaluate(run: RunFiles) -> str:
    summary = run.summary
    if best := summary.get("best_checkpoint"):
        end = [*summary["checkpoints"].values()][-1]
        if end["behind_best"] == 0:
            return "The end of the run is as good as the best of its checkpoints."
        low, high = map(plain, end["behind_best_ci95"])
        gain = f"{plain(end['behind_best'])} (95\u00a0%\u00a0interval {low} to {high})"
        return f"{best} is the best: it scores {gain} more than the end of the run."
    if is_finite(summary.get("win_rate")):
        rate, interval = float(summary["win_rate"]), summary.get("win_rate_ci95")
    else:
        gains = differences(run.samples, "score", "score_baseline")
        if not gains:
            return ""
        measured = win_rate(gains, [0.0] * len(gains))
        rate, interval = measured.value, [measured.low, measured.high]
    return _contest("The model", "its baseline", rate, interval, "prompts") + "."


def _best(run: RunFiles) -> str:
    if "ranking" not in run.summary:
        return ""
    best, second, *_ = run.summary["ranking"]
    rate, *interval = run.summary["win_rates"][best][second]
    return _contest(best, second, rate, interval, "prompts") + "."


def _pairs(run: RunFiles, claim: str) -> str:
    margins = differences(run.samples, "score_chosen", "score_rejected")
    if not margins:
        return ""
    share = pair_accuracy(margins, [0.0] * len(margins))
    low, high = wilson(sum(margin > 0 for margin in margins), len(margins))
    said = (
        f"{claim} in {percent(share, 1)} of {len(margins):,} test pairs "
        f"(95\u00a0%\u00a0interval {plain(100 * low, 1)} to {plain(100 * high, 1)})"
    )
    ceiling = run.summary.get("reward_accuracy_ceiling", run.summary.get("accuracy_ceiling"))
    noise = "; noise in the labels allows no more than"
    return f"{said}{noise} {percent(float(ceiling), 1)}." if is_finite(ceiling) else f"{said}."


def _classes(run: RunFiles) -> str:
    summary = run.summary
    right = sum(row["label"] == row["predicted"] for row in run.samples)
    if not run.samples or not is_finite(summary.get("accuracy")):
        return ""
    low, high = wilson(right, len(run.samples))
    beside = {"frozen_features": "a regression on frozen features", "tfidf": "one on TF-IDF"}
    beside["pixels"] = "one on pixels"
    known = {name: summary.get(f"accuracy_{key}") for key, name in beside.items()}
    others = [f"{name} {percent(one, 1)}" for name, one in known.items() if is_finite(one)]
    said = (
        f"The classifier is right in {percent(summary['accuracy'], 1)} of {len(run.samples):,} "
        f"test rows (95\u00a0%\u00a0interval {plain(100 * low, 1)} to {plain(100 * high, 1)})"
    )
    return f"{said}; {', '.join(others)}." if others else f"{said}."


def _kto(run: RunFiles) -> str:
    auc = run.summary.get("auc")
    if not is_finite(auc):
        return _loss(run)
    return (
        f"A desirable test completion was raised above an undesirable one in {percent(auc, 1)} of "
        f"all such pairs; chance is {percent(0.5)}."
    )


def _scores(run: RunFiles) -> str:
    axis = "episode" if has_episodes(run.metrics) else "step"
    metric = "objective/scores" if run.recipe == "ppo" else "reward"
    places, scores = points(run.metrics, axis, metric)
    if len(scores) < 2:
        return ""
    # The recipe's summary averages over the last rollouts; the page must not tell other numbers.
    first = run.summary.get("first_scores", scores[0])
    last = run.summary.get("scores", scores[-1])
    if not (is_finite(scores[-1]) and is_finite(first) and is_finite(last)):
        return f"The score is not a number after {plain(places[-1], 0)} {axis}s: this run failed."
    kl = run.summary.get("kl", points(run.metrics, axis, "objective/kl")[1][-1:].sum())
    digits, per = 1, "completion"
    if run.recipe != "ppo":  # TRL logs the KL of tokens
        kl, digits, per = run.summary.get("kl_per_token"), 3, "token"
    price = f", at {plain(kl, digits)} nats of KL per {per}" if is_finite(kl) else ""
    return (
        f"The mean score {_change(first, last, scores)} over {plain(places[-1], 0)} {axis}s{price}."
    )


def _loss(run: RunFiles) -> str:
    before, after = run.summary.get("base_perplexity"), run.summary.get("perplexity")
    if is_finite(before) and is_finite(after):
        return f"Held-out perplexity {_change(before, after)}."
    losses = points(run.metrics, "step", "eval_loss")[1]
    is_noisy = not len(losses)  # the held-out rows are the same each time
    if is_noisy:
        losses = points(run.metrics, "step", "loss")[1]
    if not len(losses):
        return ""
    name = "Training loss" if is_noisy else "Held-out loss"
    if not math.isfinite(losses[-1]):
        return f"{name} is not a number at the end: this run failed."
    if len(losses) == 1 or not math.isfinite(losses[0]):
        return f"{name} is {plain(losses[-1])} nats per token."
    noisy = losses if is_noisy else None
    return f"{name} {_change(losses[0], losses[-1], noisy, ' nats per token')}."


def _change(before: float, after: float, noisy: np.ndarray | None = None, unit: str = "") -> str:
    """In words; `noisy` are the values between the two where they are no exact measurements."""
    first, last = plain(before), f"{plain(after)}{unit}"
    if first == plain(after):
        return f"stayed at {last}"
    drift = after - before if noisy is None else beyond_noise(noisy)
    if drift is None:
        return f"went from {first} to {last}"
    if drift * (after - before) <= 0:
        return f"did not move beyond noise ({first} to {last})"
    return f"{'rose' if after > before else 'fell'} from {first} to {last}"


def beyond_noise(values: np.ndarray) -> float | None:
    """How much the last fifth of a series lies above the first, 0 where noise may explain it.

    Noise is what the values do beside a line through their neighbours: with equal noise s, the
    numbers x[i - 1] - 2 x[i] + x[i + 1] have the variance 6 s^2 whatever the slope. A mean of n
    values is then off by s / sqrt(n), and a difference counts that Student's t gives 5 % at most.

    Args:
        values: The logged values, in order; what is not finite is left out.

    Returns:
        The difference of the two means, or 0; None for fewer than three values.

    Source: Gasser, Sroka and Jennen-Steinmetz, Residual variance and residual pattern in nonlinear
        regression, 1986.
    """
    kept = values[np.isfinite(values)]
    if len(kept) < 3:
        return None
    size = max(1, len(kept) // 5)
    drift = float(kept[-size:].mean() - kept[:size].mean())
    error = np.sqrt(np.mean(np.diff(kept, 2) ** 2) / 6 * 2 / size)
    return drift if abs(drift) > error * stdtrit(max(1, len(kept) // 2 - 1), 0.975) else 0.0
