"""Line charts of the logged metrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from recipes.lib.report.figure import DASHES, INK, SERIES, Key, Picture, canvas, to_svg
from recipes.lib.report.numbers import is_finite, is_number, plain
from recipes.lib.report.run_files import Row

Points = tuple[np.ndarray, np.ndarray]

SMOOTH_FROM = 60  # points; fewer are readable as they are
MAX_POINTS = 400  # more cannot be told apart at 360 points of width


@dataclass(frozen=True)
class Curve:
    """What one chart shows.

    `lines` are pairs of metric name and legend label; those that a run did not log are left out.
    `levels` are summary keys whose values are drawn across the chart, each with its label and the
    number of its colour, 0 for neutral.
    """

    name: str
    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    caption: str
    levels: tuple[tuple[str, str, int], ...] = ()
    axis: tuple[str, str] | None = None  # key and label; else episodes, or steps without them


def draw_curves(
    curves: Sequence[Curve], rows: list[Row], summary: Row, prefix: str = ""
) -> list[Picture]:
    """Draws the charts for which there is something to draw.

    Args:
        curves: what to look for.
        rows: the rows of metrics.jsonl.
        summary: for the levels that a chart compares with.
        prefix: makes the names unique where a page shows several runs.

    Returns:
        One picture for each curve with at least two finite points on one of its lines.
    """
    axis = ("step", "optimizer steps")
    if has_episodes(rows):
        axis, rows = ("episode", "episodes"), with_episodes(rows)
    return list(
        filter(None, (_draw(curve, rows, curve.axis or axis, summary, prefix) for curve in curves))
    )


def has_episodes(rows: list[Row]) -> bool:
    """Whether the rows count episodes, beside optimizer steps."""
    return any(is_number(row.get("episode")) for row in rows)


def points(rows: list[Row], axis: str, metric: str) -> Points:
    """The logged values of a metric over `axis`, in order of the axis.

    A place that was logged twice (a run that went on from an earlier checkpoint) counts with its
    later value. NaN and infinities are kept, as NaN: they interrupt a line.
    """
    found: dict[float, float] = {}
    for row in rows:
        place, value = row.get(axis), row.get(metric)
        if is_finite(place) and metric in row:
            found[float(place)] = float(value) if is_finite(value) else math.nan
    places = sorted(found)
    return np.array(places), np.array([found[place] for place in places])


def with_episodes(rows: list[Row]) -> list[Row]:
    """Rows that tell only their step (an evaluation) with their episode, from the rows around."""
    known = [row for row in rows if is_finite(row.get("episode")) and is_finite(row.get("step"))]
    if not known:
        return rows
    known = sorted(known, key=lambda row: float(row["step"]))
    steps, episodes = ([row[key] for row in known] for key in ("step", "episode"))
    return [
        row
        if "episode" in row or not is_finite(row.get("step"))
        else row | {"episode": float(np.interp(row["step"], steps, episodes))}
        for row in rows
    ]


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Centred running mean over `width` values, over fewer at the two ends; NaN is passed over."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([np.nanmean(w) if np.isfinite(w).any() else math.nan for w in windows])


def _draw(
    curve: Curve, rows: list[Row], axis: tuple[str, str], summary: Row, prefix: str
) -> Picture | None:
    found = [(label, *points(rows, axis[0], metric)) for metric, label in curve.lines]
    lines = [(place, *line) for place, line in enumerate(found) if np.isfinite(line[2]).any()]
    if not any(np.isfinite(y).sum() >= 2 for *_, y in lines):
        return None
    name = prefix + curve.name
    keys, said, notes = [], [], []
    with canvas(axis[1], curve.unit) as (figure, axes):
        for number, label, x, y in lines:
            notes += _draw_line(axes, number, x, y)
            keys.append(_key(number, label, y))
            said.append(_description(label, x, y, axis[1]))
        keys += _draw_levels(axes, curve, summary)
        _pad(axes)
        svg = to_svg(figure, name)
    text = f"Line chart, {curve.title.lower()} in {curve.unit}. {' '.join(said)}"
    note = " ".join(dict.fromkeys(notes))
    return Picture(name, curve.title, svg, curve.caption, text, keys, note)


def _draw_line(axes: Axes, number: int, x: np.ndarray, y: np.ndarray) -> list[str]:
    notes = []
    missing = int((~np.isfinite(y)).sum())
    if missing:
        notes.append(f"{missing} of {len(y)} values were not finite and leave a gap.")
    color, style = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)]
    stride = math.ceil(len(x) / MAX_POINTS)
    if len(x) > SMOOTH_FROM:
        width = len(x) // 20 | 1
        axes.plot(x[::stride], y[::stride], color=color, linewidth=0.8, alpha=0.35)
        notes.append(f"Thin: as logged; bold: running mean of {width} values.")
        y = smoothed(y, width)
    marker = "o" if len(x) <= 12 else None
    x, y = x[::stride], y[::stride]
    axes.plot(x, y, color=color, linestyle=style, linewidth=1.8, marker=marker, markersize=3.5)
    return notes


def _draw_levels(axes: Axes, curve: Curve, summary: Row) -> list[Key]:
    keys = []
    for name, label, number in curve.levels:
        value = summary.get(name)
        if is_finite(value):
            color = SERIES[number - 1] if number else INK
            axes.axhline(value, color=color, linewidth=1, linestyle=(0, (2, 2)))
            keys.append(Key(number, label, _short(value)))
    return keys


def _pad(axes: Axes) -> None:
    # A flat line would otherwise be magnified until its rounding errors look like a shape.
    low, high = axes.get_ylim()
    least = 0.02 * max(abs(low), abs(high), 1e-6)
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least, middle + least)


def _key(number: int, label: str, y: np.ndarray) -> Key:
    finite = y[np.isfinite(y)]
    first, last = _short(finite[0]), _short(finite[-1])
    return Key(number + 1, label, last if len(finite) == 1 else f"{first} \u2192 {last}")


def _description(label: str, x: np.ndarray, y: np.ndarray, axis_label: str) -> str:
    kept = np.isfinite(y)
    ends, values = x[kept], y[kept]
    if len(values) == 1:
        return f"{label}: {_short(values[0])} at {plain(ends[0], 0)} {axis_label}."
    return (
        f"{label}: from {_short(values[0])} at {plain(ends[0], 0)} {axis_label} "
        f"to {_short(values[-1])} at {plain(ends[-1], 0)}, "
        f"lowest {_short(values.min())}, highest {_short(values.max())}."
    )


def _short(value: float) -> str:
    size = abs(value)
    return plain(float(value), 1 if size >= 100 else 2 if size >= 1 else 3)
