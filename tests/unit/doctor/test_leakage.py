"""Leaks by hand: which texts share which words in a row."""

import pytest

from recipes.lib.doctor import leakage
from recipes.lib.doctor.findings import NotCheckedError
from tests.helpers.known_scorer import pair, subject

LONG = [" ".join(f"w{(n * k) % 37}" for k in range(1, 13)) for n in range(1, 21)]


def test_containment_is_a_share_of_grams_in_one_text() -> None:
    tests = ["a b c d e f", "A b, c d e f", "x y", "q r s t u"]
    trains = ["a b c d e x", "z b c d e f", "b c d e f a b c d e"]
    # Two grams: each of the first two training texts has one, the third has both; "x y" has none.
    assert leakage.containment(tests, trains[:2]).tolist() == [0.5, 0.5, 0.0]
    assert leakage.containment(tests, trains).tolist() == [1.0, 1.0, 0.0]


def test_the_same_pair_is_found_in_other_case_and_order() -> None:
    train = [pair("W1  w2", "w3"), pair("w5", "w6")]
    rows = [pair("w3", "w1 w2"), pair("w7", "w8"), pair("w5", "w6", "w9 "), pair("w2", "w3")]
    found = leakage.leaked_rows(subject(rows, {}, train))
    assert (found["statistic"], found["status"]) == (0.25, "remark")  # a single one
    assert leakage.leaked_rows(subject(rows * 3, {}, train))["status"] == "fault"
    assert leakage.leaked_rows(subject(rows[1:], {}, train))["status"] == "fine"


@pytest.mark.parametrize(("copied", "status"), [(0, "fine"), (1, "remark"), (6, "fault")])
def test_a_word_less_is_still_the_same_text(copied: int, status: str) -> None:
    rows = [pair(text, text[::-1].replace("w", "v ")) for text in LONG]
    train = [pair(row["chosen"].rpartition(" ")[0], "w1") for row in rows[:copied]]
    found = leakage.near_duplicates(subject(rows, {}, train or [pair("w1", "w2")]))
    assert found["details"]["share"] == pytest.approx(copied / 40)
    assert found["status"] == status


def test_prompts_on_both_sides_are_counted() -> None:
    rows = [pair("w1", "w2", f"w{n} ") for n in range(10)]
    train = [pair("w3", "w4", "W1"), pair("w3", "w4", " w2")]
    found = leakage.prompts_on_both_sides(subject(rows, {}, train))
    assert (found["statistic"], found["status"]) == (0.2, "remark")


def test_without_training_rows_nothing_is_said() -> None:
    with pytest.raises(NotCheckedError, match="training rows"):
        leakage.leaked_rows(subject([pair("w1", "w2")], {}))
    with pytest.raises(NotCheckedError, match="asked the same"):
        leakage.prompts_on_both_sides(subject([pair("w1", "w2")] * 3, {}, [pair("w1", "w3")]))
