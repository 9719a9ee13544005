"""Pictures of scored pairs: a reward model's test pairs, and two models on the same prompts."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FixedFormatter, FixedLocator

from recipes.lib.evaluation.calibration import (
    Forecasts,
    binned,
    calibration_error,
    reliability,
    suitable_bins,
)
from recipes.lib.report.figure import INK, MUTED, SERIES, Key, Picture, canvas, to_svg
from recipes.lib.report.numbers import is_finite, percent, plain
from recipes.lib.report.run_files import Row


def differences(rows: Sequence[Row], high: str, low: str) -> list[float]:
    """`row[high] - row[low]` of every row in which both are finite numbers."""
    both = [(row.get(high), row.get(low)) for row in rows]
    return [float(a) - float(b) for a, b in both if is_finite(a) and is_finite(b)]


def margin_histogram(margins: Sequence[float]) -> Picture | None:
    """How far a reward model holds chosen and rejected apart; None without pairs."""
    caption = (
        "test pairs by margin; mass well to the right of 0 is good, a peak at 0 "
        "means indifference, and a long tail on the left means errors made with confidence."
    )
    picture = ("margins", "Margins on test pairs", "margins", caption)
    axes = ("score of chosen less rejected", "pairs")
    return _histogram(margins, picture, axes, ("right order", "wrong order"))


def win_histogram(gains: Sequence[float]) -> Picture | None:
    """How much better the completion scores than the baseline's; None without pairs."""
    caption = (
        "prompts by the gain in score on that prompt; the more lies right of 0 the "
        "better, and a few large losses beside many small wins are worth reading."
    )
    picture = ("gains", "Gain on each prompt", "score differences", caption)
    return _histogram(
        gains, picture, ("score of completion less baseline", "prompts"), ("win", "loss")
    )


def reliability_diagram(margins: Sequence[float]) -> Picture | None:
    """Confidence against outcome; None with fewer than 40 pairs, too few to say anything."""
    num_bins = suitable_bins(len(margins))
    if not num_bins:
        return None
    bins = reliability(margins, num_bins)
    pieces = [f"{percent(e.confidence)} foreseen, {percent(e.observed)} true" for e in bins]
    error = plain(calibration_error(bins), 3)
    return Picture(
        "calibration",
        "Calibration",
        _diagram(bins, "confidence, sigmoid(|margin|)", "share of pairs foreseen", 0.5),
        "Points on the dashed line mean that confidence can be taken at its word; below it the "
        "model is surer than it may be, above it too timid.",
        f"Reliability diagram with {num_bins} points: {'; '.join(pieces)}.",
        [Key(1, "reward model", f"ECE {error}"), Key(0, "perfectly calibrated")],
        f"Confidence = sigmoid(|score of chosen \u2212 score of rejected|), in {num_bins} bins of "
        "equal count; vertical bars: 95\u00a0% Wilson interval of the share with score of chosen "
        "> score of rejected; ECE = \u03a3 (pairs in bin / all pairs) \u00b7 |share \u2212 mean "
        "confidence|.",
    )


def label_reliability(rows: Sequence[Row]) -> Picture | None:
    """Confidence of predicted labels against how often they are right; None of too few, or lists.

    Args:
        rows: With label, predicted and probability.
    """
    rows = [row for row in rows if isinstance(row.get("label"), str)]
    if not (num_bins := suitable_bins(len(rows))):
        return None
    right = np.array([row["label"] == row["predicted"] for row in rows])
    bins = binned(np.array([row["probability"] for row in rows]), right, num_bins)
    pieces = [f"{percent(e.confidence)} sure, {percent(e.observed)} right" for e in bins]
    return Picture(
        "calibration",
        "Calibration",
        _diagram(bins, "probability of the predicted label", "share that is right", 0.0),
        "Points on the dashed line mean that probabilities can be taken at their word; below it "
        "the classifier is surer than it may be.",
        f"Reliability diagram with {num_bins} points: {'; '.join(pieces)}.",
        [Key(1, "classifier", f"ECE {plain(calibration_error(bins), 3)}"), Key(0, "perfect")],
        f"{num_bins} bins of equal count; vertical bars: 95\u00a0% Wilson interval of the share.",
    )


def _diagram(bins: Sequence[Forecasts], sure: str, came_true: str, least: float) -> str:
    x, y, low, high = np.array([(e.confidence, e.observed, e.low, e.high) for e in bins]).T
    with canvas(sure, came_true) as (figure, axes):
        axes.plot([least, 1], [least, 1], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        # Rounding can put an end of an interval 1e-17 beyond its point, which errorbar refuses.
        bars = np.clip([y - low, high - y], 0, None)
        axes.errorbar(x, y, yerr=bars, color=SERIES[0], marker="o", markersize=4.5, linewidth=1.6)
        axes.set_xlim(least - 0.015, 1.015)
        axes.set_ylim(max(0.0, low.min() - 0.05), 1.03)
        return to_svg(figure, "calibration")


def check_picture(findings: Sequence[Row]) -> Picture | None:
    """How much of its limit each check of a reward model takes up; None without any."""
    known = [row for row in findings if is_finite(row.get("statistic")) and row.get("limit")]
    if not known:
        return None
    shares = [min(max(float(row["statistic"] / row["limit"]), 0.0), 2.0) for row in known]
    names = [str(row["name"]).replace("_", " ") for row in known]
    with canvas("statistic as a share of its limit, at most 2", "") as (figure, axes):
        axes.set_position((0.36, 0.175, 0.6, 0.75))
        off = [row["status"] in ("fault", "remark") for row in known]
        axes.barh(names, shares, color=[SERIES[1] if one else SERIES[0] for one in off], height=0.6)
        axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.tick_params(axis="y", labelsize=7)
        axes.yaxis.set_major_locator(FixedLocator(range(len(names))))
        axes.yaxis.set_major_formatter(FixedFormatter(names))
        axes.invert_yaxis()
        svg = to_svg(figure, "checks")
    return Picture(
        "checks",
        "Each check against its limit",
        svg,
        "A check is told where its bar crosses the dashed line, or stays left of it where more is "
        "better (accuracies, hashes); colour says which are.",
        f"{sum(off)} of {len(known)} checks have something to say.",
        [Key(1, "fine"), Key(2, "fault or remark")],
        has_bars=True,
    )


def _histogram(
    values: Sequence[float],
    picture: tuple[str, str, str, str],
    labels: tuple[str, str],
    sides: tuple[str, str],
) -> Picture | None:
    if not values:
        return None
    name, title, noun, caption = picture
    keys = _shares(values, *sides)
    spoken = ", ".join(f"{key.label} {key.value}" for key in keys)
    text = f"Histogram of {len(values)} {noun}: {spoken}."
    data = np.asarray(values, dtype=float)
    # Zero is always an edge, so that no bar mixes wins with losses.
    width = max(np.ptp(np.append(data, 0.0)), 1e-9) / 28
    low, high = math.floor(data.min() / width), math.floor(data.max() / width) + 1
    edges = np.arange(min(low, 0), max(high, 0) + 1) * width
    counts, _ = np.histogram(data, bins=edges)
    with canvas(*labels) as (figure, axes):
        colors = [SERIES[0] if edge >= 0 else SERIES[1] for edge in edges[:-1].round(12)]
        axes.bar(edges[:-1], counts, width=0.86 * width, align="edge", color=colors, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
        axes.axvline(float(np.median(data)), color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        svg = to_svg(figure, name)
    return Picture(name, title, svg, f"{len(values):,} {caption}", text, keys, has_bars=True)


def _shares(values: Sequence[float], above: str, below: str) -> list[Key]:
    total = len(values)
    wins, losses = sum(v > 0 for v in values), sum(v < 0 for v in values)
    keys = [Key(1, above, percent(wins / total, 1)), Key(2, below, percent(losses / total, 1))]
    ties = total - wins - losses
    if ties:
        keys.append(Key(None, "tie", percent(ties / total, 1)))
    return [*keys, Key(0, "median", plain(float(np.median(values))))]
