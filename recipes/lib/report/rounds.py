"""Rounds as a timeline: answers, accuracy, win rate, KL, what was promoted, and from what."""

from pathlib import Path
from typing import Any

from recipes.lib.report.figure import INK, SERIES, Key, Picture, canvas, to_svg
from recipes.lib.report.numbers import NATS, is_finite, number, percent, plain
from recipes.lib.report.run_files import Row, read_run
from recipes.lib.report.sections import Section, present

MAIN = ("win_rate", "accuracy", "kl", "num_items", "num_answers")  # of a step, the first it has
NONE = "\u2013"
HEADS = ["Round", "Answers", "Accuracy", "Win rate", f"KL, {NATS}", "Began from", "Promoted"]


def round_sections(rounds: dict[str, Row]) -> list[Section]:
    """The sections of a page of rounds.

    Args:
        rounds: By name what each round wrote into its summary.json.
    """
    shown = [timeline(rounds)] if any("win_rate" in row for row in rounds.values()) else []
    table = [HEADS, *([name, *_cells(row)] for name, row in rounds.items())]
    reasons = [f"{name}: {one}." for name, row in rounds.items() for one in row["reasons"]]
    hints = [f"{name}: {hint}" for name, row in rounds.items() for hint in row["hints"]]
    return present(
        [
            Section("rounds", "Round by round", shown, table=table),
            Section("reasons", "Why some were not promoted", lines=reasons),
            Section("hints", "To look at in the answers", lines=hints),
        ]
    )


def timeline(rounds: dict[str, Row]) -> Picture:
    """The win rate of each round's policy over the last promoted one, with its interval."""
    keys = []
    with canvas("round", "win rate over the last promoted") as (figure, axes):
        for place, (name, row) in enumerate(rounds.items(), start=1):
            if "win_rate" in row:
                rate, (low, high) = row["win_rate"], row["win_rate_ci95"]
                # Rounding can pass the end.
                bars = [[max(rate - low, 0.0)], [max(high - rate, 0.0)]]
                marker = "o" if row["promoted"] else "x"
                axes.errorbar(place, rate, bars, color=SERIES[0], marker=marker)
                told = f"{percent(rate)} ({plain(100 * low, 0)} to {plain(100 * high, 0)})"
                keys.append(Key(1, name, told))
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_xticks(range(1, len(rounds) + 1))
        axes.set_ylim(0, 1)
        svg = to_svg(figure, "rounds")
    caption = (
        "With 95\u00a0% intervals: a circle was promoted, a cross was not; on the dashed line both "
        "are as good."
    )
    told = "; ".join(f"{key.label} {key.value}" for key in keys)
    return Picture("rounds-won", "Better than before?", svg, caption, f"Won: {told}.", keys)


def _cells(row: Row) -> list[str]:
    rate, kl, accuracy = row.get("win_rate"), row.get("kl"), row.get("accuracy")
    low, high = row.get("win_rate_ci95", (0.0, 0.0))
    won = (
        f"{percent(rate)} ({plain(100 * low, 0)} to {plain(100 * high, 0)})"
        if is_finite(rate)
        else NONE
    )
    return [
        plain(row["num_answers"], 0),
        percent(accuracy, 1) if is_finite(accuracy) else NONE,
        won,
        plain(kl, 1) if is_finite(kl) else NONE,
        _short(row["start"]),
        "yes" if row["promoted"] else "no",
    ]


def _short(policy: str) -> str:
    """A policy by the last two parts of its path, such as round-1/ppo."""
    return "/".join(Path(policy).parts[-2:])


def round_steps(root: Path) -> list[dict[str, Any]]:
    """The lines of the table of steps, in the order in which they ran."""
    runs = [read_run(file.parent) for file in root.glob("round-*/*/summary.json")]
    runs = [run for run in runs if ".old-" not in run.path.name]
    lines: list[dict[str, Any]] = []
    for run in sorted(runs, key=lambda one: (one.path / "summary.json").stat().st_mtime):
        name = run.path.relative_to(root).as_posix()
        time = number("seconds", run.summary["seconds"]) if "seconds" in run.summary else None
        key = next((key for key in MAIN if is_finite(run.summary.get(key))), None)
        result = number(key, run.summary[key]) if key else None
        label = result.label.lower() if result else ""
        page = f"{name}/report.html" if (run.path / "report.html").is_file() else ""
        lines.append({"name": name, "time": time, "label": label, "result": result, "report": page})
    return lines


def rounds_verdict(rounds: dict[str, Row]) -> str:
    """Which policies were promoted."""
    won = [name for name, row in rounds.items() if row["promoted"]]
    if not won:
        return "No policy was promoted."
    told = f"{', '.join(won)} of {len(rounds)} brought a better policy"
    return f"{told.capitalize()}; the last one is {_short(rounds[won[-1]]['policy'])}."
