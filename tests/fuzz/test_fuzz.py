"""A short run of bench/input/fuzz.py: malformed inputs are refused in a sentence, or right."""

import pytest

from tests.helpers.fuzz.verdicts import KINDS, tally, warm_up

NUMBERS = {"files": 80, "rows": 60, "configurations": 60, "commands": 100, "options": 150}


@pytest.mark.filterwarnings("ignore")  # a broken file may make a library complain, too
@pytest.mark.parametrize("kind", KINDS)
def test_malformed_inputs_end_in_a_sentence_or_a_right_result(kind: str) -> None:
    warm_up()
    found, _ = tally(kind, NUMBERS[kind], raises=True)
    assert found["refused"] > 0
    assert found["right"] > 0
    assert sum(found.values()) == NUMBERS[kind]
