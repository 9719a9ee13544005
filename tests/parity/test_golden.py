"""Thirty optimizer steps equal the recorded ones, number by number."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import trajectory

# Other machines add up in another order. Measured with other vector units (none, AVX2) and two
# threads: no number moved by more than 2e-6 of itself, or by 1e-6 where it is near 0, in 30 Adam
# steps. A changed formula, default of a library, sampling or shuffle is off by far more.
RELATIVE, ABSOLUTE = 1e-4, 1e-5
REMEDY = (
    "{count} numbers of the run {name} differ from tests/parity/golden.json, first {first}. If the "
    "change is meant to move numbers, write a line under Numerics in CHANGELOG.md and renew the "
    "record with .venv/bin/python scripts/renew_golden; if not, it is a mistake. The record was "
    "made with {versions}."
)


Rows = list[dict[str, float]]


def compare(name: str, got: Rows, record: dict[str, Any]) -> None:
    expected = record["runs"][name]
    assert len(got) == len(expected) == 30
    differing = [
        f"{key} at step {row['step']}: {row.get(key)} instead of {value}"
        for row, recorded in zip(got, expected, strict=True)
        for key, value in recorded.items()
        if row.get(key) != pytest.approx(value, rel=RELATIVE, abs=ABSOLUTE)
    ]
    assert not differing, REMEDY.format(
        count=len(differing), name=name, first=differing[0], versions=record["versions"]
    )


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(trajectory.RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", trajectory.RUNS)
def test_thirty_steps_are_those_that_were_recorded(
    tmp_path: Path, record: dict[str, Any], name: str
) -> None:
    compare(name, trajectory.metrics(name, tmp_path), record)


def test_a_number_that_moved_is_told_with_the_remedy(record: dict[str, Any]) -> None:
    got = copy.deepcopy(record["runs"]["head"])
    got[7]["val/ratio"] *= 1.001
    got[9].pop("objective/kl")
    with pytest.raises(
        AssertionError, match=r"2 numbers of the run head.*val/ratio at step 8.*Num"
    ):
        compare("head", got, record)
