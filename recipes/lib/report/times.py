"""Where the time of a run went, from its logged metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.lib.report.numbers import Number, duration, is_finite, percent, plain
from recipes.lib.report.run_files import Row

PHASES = {
    "sampling": "Sampling completions",
    "scoring": "Rewards, log-probabilities, values",
    "training": "Updates",
    "evaluation": "Evaluation",
    "saving": "Saving checkpoints",
}
REST = "Loading, start, last save"


@dataclass(frozen=True)
class Spent:
    """One line of the table: seconds, their share, and tokens per second where they are known."""

    label: str
    seconds: Number
    share: str
    rate: Number | None = None


def phase_times(rows: Sequence[Row], total: object) -> list[Spent]:
    """The time of each phase over the whole run.

    Args:
        rows: The rows of metrics.jsonl; `time/<phase>` are seconds since the row before.
        total: Seconds of the whole run, from its summary; None where there is none.

    Returns:
        The phases that took place, and what is left of the total if that covers them.
    """
    seconds = {phase: _sum(rows, f"time/{phase}") for phase in PHASES}
    known = sum(seconds.values())
    if not known:
        return []
    has_rest = is_finite(total) and total > known
    whole = float(total) if is_finite(total) and has_rest else known
    made = [
        _spent(label, seconds[phase], whole, _rate(rows, phase, seconds[phase]))
        for phase, label in PHASES.items()
        if seconds[phase]
    ]
    return [*made, _spent(REST, whole - known, whole)] if has_rest else made


def _spent(label: str, seconds: float, whole: float, rate: Number | None = None) -> Spent:
    number = Number("", label, repr(seconds), duration(seconds))
    share = seconds / whole
    return Spent(label, number, percent(share) if share >= 0.005 else "under 1\u00a0%", rate)


def _rate(rows: Sequence[Row], phase: str, seconds: float) -> Number | None:
    name = f"time/{phase}_tokens_per_second"
    both = [(row.get(name), row.get(f"time/{phase}")) for row in rows]
    tokens = sum(float(a) * float(b) for a, b in both if is_finite(a) and is_finite(b))
    if not tokens:
        return None
    rate = tokens / seconds
    return Number(name, phase, repr(rate), plain(rate, 0))


def _sum(rows: Sequence[Row], name: str) -> float:
    values = [row.get(name) for row in rows]
    return sum(float(value) for value in values if is_finite(value))
