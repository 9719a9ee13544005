"""What a check finds, and the statistics that checks share.

A fault means that a policy would not learn what was meant, and stops; a remark is for whoever reads
the report. checks.json has every limit with its reason, and what is said.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FAULT, REMARK, FINE, NOT_CHECKED = "fault", "remark", "fine", "not checked"
Array = np.ndarray
Finding = dict[str, Any]  # name, status, sentence; statistic, limit, reason, remedy, details


class NotCheckedError(Exception):
    """Why a check has nothing to say, as the end of a sentence."""


@functools.cache
def texts() -> dict[str, dict[str, Any]]:
    """Of every check its limit with the reason, the sentence of each status, and the remedy."""
    found: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_name("checks.json").read_text(encoding="utf-8")
    )
    return found


def limit_of(name: str) -> float:
    """Where the fault or the remark of a check begins."""
    return float(texts()[name]["limit"])


def finding(
    name: str,
    value: Any,
    is_fault: Any,
    is_remark: Any = False,
    limit: float | None = None,
    **details: Any,
) -> Finding:
    """The answer of one check.

    Args:
        name: Of the check, as in checks.json.
        value: The number that decides.
        is_fault: Whether it stops.
        is_remark: Whether it is told.
        limit: Where that begins, if not where checks.json says.
        details: Further numbers, and words of the sentence.

    Returns:
        What check.json holds of it.
    """
    said, status = texts()[name], FAULT if is_fault else REMARK if is_remark else FINE
    return {
        "name": name,
        "status": status,
        "sentence": said[status].format(value=value, **details),
        "statistic": _rounded(value),
        "limit": _rounded(said["limit"] if limit is None else limit),
        "reason": said["reason"],
        "remedy": said["remedy"],
        "details": {key: _rounded(one) for key, one in details.items()},
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    return value


def outcomes(margins: Array) -> Array:
    """1 where the chosen one scores higher, 0 where the rejected one does, 0.5 for a tie."""
    return (np.sign(margins) + 1) / 2


def interval(outcome: Array) -> tuple[float, float]:
    """95 % Wilson interval of a mean of outcomes; of two ties one counts."""
    from recipes.lib.report.calibration import wilson

    return wilson(math.floor(outcome.sum()), len(outcome))


def mean_interval(values: Array) -> tuple[float, float]:
    """Mean less and plus two standard errors."""
    error = 2 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()) - error, float(values.mean()) + error


def rank_correlation(one: Sequence[float] | Array, other: Sequence[float] | Array) -> float:
    """Spearman's; 0 where one of them does not vary."""
    from scipy.stats import spearmanr

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)


def largest(found: dict[str, float]) -> tuple[str, float]:
    """The largest of some numbers, with its name."""
    worst = max(found, key=lambda name: found[name])
    return worst, found[worst]
