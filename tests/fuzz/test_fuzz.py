"""A short run of scripts/bench/fuzz: malformed inputs are refused in a sentence, or right."""

from pathlib import Path

import pytest

from tests.fuzz.verdicts import KINDS, verdict, warm_up

NUMBERS = {"files": 120, "rows": 120, "configurations": 60, "commands": 40}


@pytest.mark.filterwarnings("ignore")  # a broken file may make a library complain, too
@pytest.mark.parametrize("kind", KINDS)
def test_malformed_inputs_end_in_a_sentence_or_a_right_result(kind: str, tmp_path: Path) -> None:
    warm_up()
    found = {"refused": 0, "right": 0}
    for number in range(NUMBERS[kind]):
        folder = tmp_path / str(number)
        folder.mkdir()
        told, why = verdict(kind, number, folder)
        assert told != "fault", f"{kind} {number}: {why}"
        found[told] += 1
    assert found["refused"] > 0
    assert found["right"] > 0
