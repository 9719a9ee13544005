"""Names, units and spelling of the numbers on a page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

NBSP = "\u00a0"
MINUS = "\u2212"


@dataclass(frozen=True)
class Quantity:
    """How one number is called and written.

    `style` is "percent" (a fraction, shown times 100), "seconds", "count" or "plain".
    """

    label: str
    style: str = "plain"
    unit: str = ""
    digits: int = 2


@dataclass(frozen=True)
class Number:
    """A number of the summary, ready to print; `value` is the unrounded original."""

    key: str
    label: str
    value: str
    text: str
    unit: str = ""


@dataclass(frozen=True)
class Tile:
    """One number in large letters and, beneath it, those that it is compared with."""

    main: Number
    beside: list[Number] = field(default_factory=list)


NATS = "nats per completion"
QUANTITIES: dict[str, Quantity] = {
    "win_rate": Quantity("Win rate", "percent", digits=1),
    "win_rate_ci95": Quantity("95\u00a0% interval", "percent", digits=1),
    "length_controlled_win_rate": Quantity("Win rate at equal lengths", "percent", digits=1),
    "length_controlled_win_rate_ci95": Quantity("95\u00a0% interval", "percent", digits=1),
    "reward_funcs": Quantity("Rewards of the run"),
    "score_ci95": Quantity("95\u00a0% interval"),
    "behind_best": Quantity("Behind the best"),
    "behind_best_ci95": Quantity("95\u00a0% interval"),
    "gold_ppo": Quantity("Gold score after PPO"),
    "gold_sft": Quantity("before, SFT"),
    "score": Quantity("Mean score"),
    "score_baseline": Quantity("baseline"),
    "scores": Quantity("Mean score, last rollouts"),
    "first_scores": Quantity("first rollout"),
    "rlhf_reward": Quantity("Score less KL penalty"),
    "kl": Quantity("KL from the reference", unit=NATS, digits=1),
    "kl_per_token": Quantity("KL from the reference", unit="nats per token", digits=3),
    "completion_length": Quantity("Completion length", unit="tokens", digits=1),
    "reward_accuracy": Quantity("Reward accuracy", "percent", digits=1),
    "reward_accuracy_ceiling": Quantity("ceiling set by rater noise", "percent", digits=1),
    "accuracy": Quantity("Accuracy on test rows", "percent", digits=1),
    "accuracy_ceiling": Quantity("ceiling set by label noise", "percent", digits=1),
    "accuracy_bag_of_words": Quantity("Accuracy of bag of words", "percent", digits=1),
    "accuracy_frozen_features": Quantity("of frozen features", "percent", digits=1),
    "accuracy_tfidf": Quantity("Accuracy of a regression on TF-IDF", "percent", digits=1),
    "accuracy_pixels": Quantity("Accuracy of a regression on pixels", "percent", digits=1),
    "f1_macro": Quantity("F1, mean over labels", "percent", digits=1),
    "log_loss": Quantity("log loss, nats", digits=3),
    "calibration_error": Quantity("Calibration error", "percent", digits=1),
    "auc": Quantity("Desirable above undesirable", "percent", digits=1),
    "margin": Quantity("Mean margin"),
    "sft_perplexity": Quantity("Perplexity after SFT"),
    "perplexity": Quantity("Held-out perplexity"),
    "base_perplexity": Quantity("before"),
    "perplexity_baseline": Quantity("baseline"),
    "eval_loss": Quantity("Held-out loss", unit="nats per token"),
    "train_loss": Quantity("mean in training"),
    "mean_score": Quantity("Mean score"),
    "num_items": Quantity("Items", "count"),
    "num_answers": Quantity("Answers", "count"),
    "num_pairs": Quantity("Pairs", "count"),
    "num_test": Quantity("of them for testing", "count"),
    "num_prompts": Quantity("Prompts", "count"),
    "num_texts": Quantity("Texts", "count"),
    "num_parameters": Quantity("Parameters", "count"),
    "episodes": Quantity("Episodes", "count"),
    "seconds": Quantity("Time", "seconds"),
    "energy_kwh_measured": Quantity("Energy, measured on the card", unit="kWh", digits=3),
    "energy_kwh_estimated": Quantity("Energy, estimated", unit="kWh", digits=3),
    "co2_grams": Quantity("CO2 by the stated grid", unit="g"),
    "total_seconds": Quantity("All stages together", "seconds"),
    "peak_rss_mb": Quantity("Peak memory", "count", unit="MB"),
}


def is_number(value: object) -> TypeGuard[float]:
    """True for int and float, NaN and infinities included, and not for bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """True for a number that is neither NaN nor infinite."""
    return is_number(value) and math.isfinite(value)


def plain(value: float, digits: int = 2) -> str:
    """A number with thousands separators and a real minus sign; NaN is written out."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{'' if value > 0 else MINUS}infinite"
    # Three significant digits where fixed digits would round it to nothing.
    small = value != 0 and abs(value) < 10.0**-digits
    text = f"{abs(value):.2e}" if small else f"{abs(value):,.{digits}f}"
    is_zero = not text.strip("0.,")
    return text if value >= 0 or is_zero else MINUS + text


def percent(fraction: float, digits: int = 0) -> str:
    """A fraction as a percentage, for example 0.874 as "87 %"."""
    if not math.isfinite(fraction):
        return plain(fraction)
    return f"{plain(100 * fraction, digits)}{NBSP}%"


def duration(seconds: float) -> str:
    """Seconds as "4.2 s", "2 min 05 s" or "1 h 03 min"."""
    if not math.isfinite(seconds) or seconds < 0:
        return plain(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest:02d}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def number(key: str, value: Any, label: str | None = None) -> Number:
    """The number (or interval, a list of two) of one summary key, ready to print.

    Args:
        key: of the summary.
        value: its value.
        label: what to call it; default: the name that every page uses.
    """
    style = "count" if isinstance(value, int) else "plain"
    quantity = QUANTITIES.get(key) or Quantity(key.replace("_", " "), style)
    text = " to ".join(_spelled(entry, quantity) for entry in _entries(value))
    exact = " ".join(map(repr, _entries(value)))
    return Number(key, label or quantity.label, exact, text, quantity.unit)


def tiles(
    summary: Mapping[str, Any],
    layout: Sequence[Sequence[str]],
    labels: Mapping[str, str] | None = None,
) -> list[Tile]:
    """The tiles that a summary can fill.

    Args:
        summary: flat, as in summary.json.
        layout: for each tile its key, then the keys of the numbers beside it.
        labels: names of tiles that differ from those that every page uses.
    """
    made = []
    for key, *others in layout:
        if _is_shown(summary.get(key)):
            shown = [name for name in others if _is_shown(summary.get(name))]
            beside = [number(name, summary[name]) for name in shown]
            made.append(Tile(number(key, summary[key], (labels or {}).get(key)), beside))
    return made


def _entries(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _is_shown(value: Any) -> bool:
    entries = _entries(value)
    return bool(entries) and all(map(is_number, entries))


def _spelled(value: float, quantity: Quantity) -> str:
    if quantity.style == "percent":
        return percent(value, quantity.digits)
    if quantity.style == "seconds":
        return duration(value)
    return plain(value, 0 if quantity.style == "count" else quantity.digits)
