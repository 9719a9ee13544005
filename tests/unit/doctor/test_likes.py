"""What a model likes beside what it should, of models whose taste is known."""

import pytest

from recipes.lib.doctor import likes
from recipes.lib.doctor.findings import NotCheckedError
from tests.helpers.known_scorer import pair, subject

TASTE = {"good": 1.0, "bad": -1.0}
MIXED = [pair("good " + "w1 " * (n % 4), "bad " + "w2 " * (n % 3)) for n in range(24)]


def test_a_model_that_counts_words_is_a_fault_and_one_that_reads_them_is_none() -> None:
    rows = MIXED * 2
    counting = likes.length_only(subject(rows, {"*": 1.0}))
    assert counting["statistic"] == pytest.approx(1.0)
    assert (counting["status"], counting["details"]["what"]) == ("fault", "long")
    assert likes.length_only(subject(rows, {"*": -1.0}))["details"]["what"] == "short"
    reading = likes.length_only(subject(rows, TASTE))
    assert reading["status"] == "fine"
    assert reading["details"]["accuracy_equal"] == 1.0


def test_a_task_whose_good_texts_are_long_is_no_fault_where_the_short_ones_are_told_too() -> None:
    rows = [pair("good " * (2 + n % 5), "w1") for n in range(20)]
    rows += [pair("good good", "bad good w3 w4")] * 10  # the shorter one is better
    found = likes.length_only(subject(rows, TASTE))
    assert found["details"]["accuracy_against"] == 1.0
    assert found["status"] != "fault"


@pytest.mark.parametrize(
    ("prompts", "weights", "status"),
    [
        ([f"w{n} " for n in range(24)], {}, "fault"),
        ([f"w{n} " for n in range(24)], {f"w{n}": n / 9 for n in range(24)}, "remark"),
        (["w5 "] * 24, {}, "fault"),
        (["w5 "] * 24, {"w5": 1.0}, "fine"),
    ],
)
def test_another_prompt_has_to_change_the_score(
    prompts: list[str], weights: dict[str, float], status: str
) -> None:
    rows = [row | {"prompt": prompt} for row, prompt in zip(MIXED, prompts, strict=True)]
    # Prompts go round in a ring, so that a sum over prompts has no mean change.
    assert likes.prompt_ignored(subject(rows, TASTE | weights))["status"] == status


def test_pairs_without_prompts_are_not_asked_about_them() -> None:
    with pytest.raises(NotCheckedError, match="no prompts"):
        likes.prompt_ignored(subject([pair("good", "bad", "")], TASTE))
    with pytest.raises(NotCheckedError, match="every text the same"):
        likes.prompt_ignored(subject(MIXED, {}))


def test_shifts_are_in_standard_deviations() -> None:
    # Words unknown to the model, such as those of flattery, are <unk>: eight of them, each 0.5.
    examined = subject(MIXED, TASTE | {"<unk>": 0.5})
    found = likes.style(examined)["details"]["found"]
    assert found["flattery"] == pytest.approx(8 * 0.5 / examined.spread, rel=1e-3)
    assert likes.style(examined)["status"] == "remark"


def test_a_model_that_likes_nothing_likes_empty_texts() -> None:
    rows = [pair("w1 w2 w3", "w1 w2 w4"), pair("w2 w3 w5 w6", "w1")] * 8
    found = likes.odd_texts(subject(rows, {"*": -1.0}))
    assert (found["status"], found["details"]["worst"]) == ("remark", "empty")


def test_the_beam_finds_the_best_words_of_each_length() -> None:
    worth = {"a": 1.0, "b": 3.0, "c": 2.0}

    def added_up(tails: list[str]) -> dict[str, float]:
        return {tail: sum(worth[word] for word in tail.split()) for tail in tails}

    found = likes.search(list(worth), added_up)
    assert found == {"b": 3.0, "b b": 6.0, "b b b": 9.0}
    # Alone b is worth more, and c behind a is worth most: a beam of three keeps what begins lower.
    best = likes.search(
        list(worth), lambda tails: {t: 9.0 if t == "a c" else worth[t[0]] for t in tails}
    )
    assert max(best, key=lambda tail: best[tail]) == "a c"


def test_a_planted_word_is_found() -> None:
    rows = [pair(f"good w{n} w7", f"bad w{n}") for n in range(8, 20)]
    found = likes.suffix(subject(rows, TASTE | {"w7": 5.0}, train=rows))
    assert found["details"]["worst"] == "w7 w7 w7"
    assert found["status"] == "remark"
