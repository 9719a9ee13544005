"""A picture of the page: matplotlib draws it, the page's style sheet colours it."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Stand-ins that are drawn and then replaced by CSS variables, so that one picture serves the light
# page, the dark page and the printed one.
INK, MUTED, RULE = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808", "#090909")
CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"}
CSS_VARIABLES |= {color: f"--series-{number}" for number, color in enumerate(SERIES, 1)}
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("solid", (0, (5, 2)), (0, (1.2, 1.6)))
SIZE_INCHES = (5.0, 2.9)  # 360 by 209 points: drawn at about that size in three columns


@dataclass(frozen=True)
class Key:
    """One entry of a legend.

    `series` is the number of its line, 1 to 6, 0 for a dashed neutral one, None for a mere number.
    """

    series: int | None
    label: str
    value: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with all that is said about it.

    `caption` says how to read it and what a bad shape means, `description` what it shows, for those
    who cannot see it.
    """

    name: str
    title: str
    svg: str
    caption: str
    description: str
    keys: list[Key] = field(default_factory=list)
    note: str = ""
    has_bars: bool = False


@contextmanager
def canvas(x_label: str, y_label: str) -> Iterator[tuple[Figure, Axes]]:
    """Axes in the page's style: horizontal rules only, the unit above the axis."""
    with matplotlib.rc_context({"font.size": 11.0, "path.simplify_threshold": 0.5}):
        figure = Figure(figsize=SIZE_INCHES)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.125, 0.175, 0.85, 0.71))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(MUTED)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=MUTED, length=0, pad=4, labelcolor=MUTED)
        axes.tick_params(axis="x", length=3)
        for axis in (axes.yaxis, axes.xaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_title(y_label, loc="left", fontsize=11, color=MUTED, x=-0.13, pad=8)
        axes.set_xlabel(x_label, loc="right", color=MUTED, labelpad=3)
        yield figure, axes


def short(value: float) -> str:
    """A tick label of at most six characters: 12,000 as 12k, tiny numbers as powers."""
    size = abs(value)
    if size >= 1e10:
        return f"{value:.0e}"
    for least, divisor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            return f"{value / divisor:.4g}{letter}".replace("-", "\u2212")
    if 0 < size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "\u2212")
    return f"{value:,.4g}".replace("-", "\u2212") if size < 1000 else f"{value:,.0f}"


def to_svg(figure: Figure, name: str) -> str:
    """The drawing as an `svg` element for the inside of an HTML page.

    Text stays text (the browser's fonts have glyphs for every script), colours are CSS variables,
    ids begin with `name` so that no two pictures on a page share one, and nothing refers outside.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert box is not None, "matplotlib always writes a viewBox"
    body = drawn[drawn.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    return f'<svg viewBox="{box[1]}" aria-hidden="true" focusable="false">' + _for_page(body, name)


def _for_page(body: str, name: str) -> str:
    used = set(re.findall(r"url\(#([^)]+)\)", body)) | set(re.findall(r'href="#([^"]+)"', body))
    body = re.sub(
        r'\sid="([^"]+)"',
        lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "",
        body,
    )
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"\s*font-family: [^;\"]*;?", "", body)
    for color, variable in CSS_VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return re.sub(r"\s*\n\s*", " ", body).strip()
