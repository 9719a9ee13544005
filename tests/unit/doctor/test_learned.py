"""What the margins say, against values that are worked out by hand."""

import math

import pytest
from datasets import Dataset

from recipes.lib.doctor import learned
from recipes.lib.doctor.findings import NotCheckedError
from recipes.lib.doctor.subject import Subject
from tests.helpers.known_scorer import pair, subject

TASTE = {"good": 1.0, "bad": -1.0}


def wilson(share: float, number: int) -> tuple[float, float]:
    z = 1.959963984540054
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    spread = math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return middle - z * spread / (1 + z * z / number), middle + z * spread / (1 + z * z / number)


def judged(right: int, wrong: int) -> Subject:
    rows = [pair(f"good w{n % 30}", f"bad w{n % 30}") for n in range(right)]
    rows += [pair(f"bad w{n % 30}", f"good w{n % 30}") for n in range(wrong)]
    return subject(rows, TASTE)


@pytest.mark.parametrize(
    ("right", "wrong", "status"),
    [
        (90, 10, "fine"),
        (58, 42, "remark"),
        (5, 5, "remark"),
        (100, 100, "fault"),
        (10, 90, "fault"),
    ],
)
def test_the_accuracy_has_to_lie_above_guessing(right: int, wrong: int, status: str) -> None:
    found = learned.learned_nothing(judged(right, wrong))
    low, _ = wilson(right / (right + wrong), right + wrong)
    assert found["statistic"] == pytest.approx(low, abs=1e-5)
    assert found["status"] == status


@pytest.mark.parametrize(("wrong", "status"), [(0, "fine"), (5, "remark"), (10, "fault")])
def test_labels_are_asked_for_where_the_margin_is_widest(wrong: int, status: str) -> None:
    # 20 of 100 pairs have twice the margin; of those so many are labelled the other way.
    wide = [pair("good good w1", "bad bad w1")] * (20 - wrong)
    wide += [pair("bad bad w1", "good good w1")] * wrong
    found = learned.wrong_labels(subject(wide + [pair("good w2", "bad w2")] * 80, TASTE))
    assert found["details"]["agreed"] == pytest.approx(1 - wrong / 20)
    assert found["statistic"] == pytest.approx(wilson(1 - wrong / 20, 20)[1], abs=1e-5)
    assert found["status"] == status


def test_labels_that_a_bag_of_words_agrees_with_are_not_wrong() -> None:
    rows = [pair("good good w1", "bad bad w2"), pair("bad bad w1", "good good w2")] * 10
    examined = subject(rows + [pair("good w1", "bad w2")] * 80, TASTE)
    assert learned.wrong_labels(examined)["status"] == "fault"
    examined.train = examined.test
    assert learned.wrong_labels(examined)["status"] == "remark"


@pytest.mark.parametrize(("known", "status"), [(65, "fault"), (90, "remark")])
def test_a_bag_of_words_excuses_labels_where_few_can_be_wrong(known: int, status: str) -> None:
    # The model has ten wrong of its twenty widest; the bag of words, which knows w3, has so many
    # of 100 right, and with 30 of 100 labels wrong nobody has more than 70.
    rows = [pair("good good w1", "bad bad w1")] * 10 + [pair("bad bad w1", "good good w1")] * 10
    rows += [pair("good w1", "bad w1")] * 80
    for number, row in enumerate(rows):
        side = "chosen" if number % 100 < known else "rejected"
        rows[number] = row | {side: f"{row[side]} w3"}
    examined = subject(rows, TASTE)
    examined.train = Dataset.from_list([pair("w3", "w4")] * 20)
    assert learned.wrong_labels(examined)["status"] == status


def test_noise_that_is_known_is_no_surprise() -> None:
    rows = [pair("good good w1", "bad bad w1")] * 10 + [pair("bad bad w1", "good good w1")] * 10
    rows += [pair("good w2", "bad w2")] * 80
    examined = subject(rows, TASTE)
    examined.test = Dataset.from_list([row | {"noise": 0.4} for row in rows])
    assert learned.wrong_labels(examined)["status"] != "fault"


def test_an_end_token_that_turns_the_order_is_a_fault() -> None:
    # Margins of 2 with the end token and of -2 without, and log(1 + e^2) - log(1 + e^-2) is 2.
    rows = [pair(f"good w{n % 30}", f"bad w{n % 30}") for n in range(40)]
    backwards = [pair(row["rejected"], row["chosen"]) for row in rows]
    assert learned.no_eos(subject(backwards, TASTE, rows))["statistic"] == 0.0
    turned = learned.no_eos(subject(backwards, TASTE, rows, way="turned by eos"))
    assert turned["statistic"] == pytest.approx(-2.0)
    assert turned["status"] == "fault"
    trained = learned.no_eos(subject(rows, TASTE, backwards, way="turned by eos"))
    assert trained["statistic"] == pytest.approx(2.0)
    assert trained["status"] == "fine"


def test_an_end_token_is_not_asked_about_where_nothing_tells() -> None:
    rows = [pair("good w1", "bad w2")] * 40
    examined = subject(rows, TASTE, rows)
    examined.is_own = False
    with pytest.raises(NotCheckedError, match="trained on are not there"):
        learned.no_eos(examined)
    examined.is_own = True
    examined.scorer.model.config.pad_token_id = examined.scorer.tokenizer.eos_token_id
    with pytest.raises(NotCheckedError, match="its padding"):
        learned.no_eos(examined)
    with pytest.raises(NotCheckedError, match="39 pairs are too few"):
        learned.no_eos(subject(rows, TASTE, rows[1:]))


def test_confidence_is_compared_with_outcomes() -> None:
    # Every margin is 2, so each forecast says sigmoid(2) = 0.881, and all come true.
    rows = [pair(f"good w{n % 30}", f"bad w{n % 30}") for n in range(100)]
    found = learned.calibration(subject(rows, TASTE))
    assert found["statistic"] == pytest.approx(1 - 1 / (1 + math.exp(-2)), abs=1e-6)
    sure = learned.calibration(subject(rows[:50] + [pair("bad", "good")] * 50, TASTE | {"bad": -9}))
    assert sure["status"] == "remark"


def test_few_pairs_tell_nothing() -> None:
    with pytest.raises(NotCheckedError, match="too few"):
        learned.wrong_labels(judged(10, 2))
    with pytest.raises(NotCheckedError, match="no better than guessing"):
        learned.wrong_labels(judged(50, 50))
