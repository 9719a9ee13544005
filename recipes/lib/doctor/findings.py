"""What a check finds.

A fault means that a policy would not learn what was meant, and stops; a remark is for whoever reads
the report. checks.json has every limit with its reason, and what is said.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

FAULT, REMARK, FINE, NOT_CHECKED = "fault", "remark", "fine", "not checked"
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
