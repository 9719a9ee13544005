import numpy as np
import pytest
from scipy.stats import binomtest

from recipes.lib.errors import UserError
from recipes.lib.evaluation.slices import sliced, slices_of

DRAWS = 200
TOPICS = ("art", "code", "law", "math", "news")


def table(seed: int, planted: bool) -> tuple[list[float | None], dict[str, list[int]]]:
    """500 prompts of five topics and some lengths; one topic is planted to be won more often."""
    rng = np.random.default_rng(seed)
    topics, lengths = rng.choice(TOPICS, 500), rng.integers(5, 90, 500)
    chance = np.where((topics == "math") & planted, 0.85, 0.55)
    shares = np.where(rng.random(500) < 0.1, 0.5, rng.random(500) < chance)
    columns = {"topic": list(topics), "length": [int(one) for one in lengths]}
    return list(shares), slices_of(["topic", "length"], columns)


def test_a_planted_slice_is_found_and_one_that_is_not_there_is_not() -> None:
    found = [sliced(*table(seed, True))["topic: math"]["differs"] for seed in range(DRAWS)]
    assert np.mean(found) >= 0.95
    told = [sliced(*table(seed, False)) for seed in range(DRAWS)]
    assert {len(one) for one in told} == {9}
    assert np.mean([any(part["differs"] for part in one.values()) for one in told]) <= 0.05
    # And all nine intervals hold the true rate at once: 0.9 of 0.55, and 0.1 of a half.
    missed = [
        any(
            not part["win_rate_ci95"][0] <= 0.545 <= part["win_rate_ci95"][1]
            for part in one.values()
        )
        for one in told
    ]
    assert np.mean(missed) <= 0.08  # 0.05, and two standard errors of 200 draws


def test_an_interval_is_wilsons_at_the_corrected_confidence() -> None:
    shares = [1.0] * 12 + [0.0] * 8 + [0.5] * 20
    told = sliced(shares, {"a": [*range(20)], "b": [*range(20, 40)]})
    exact = binomtest(12, 20).proportion_ci(confidence_level=0.975, method="wilson")
    assert told["a"]["win_rate_ci95"] == pytest.approx([exact.low, exact.high])
    assert told["a"] | {"win_rate_ci95": None} == {
        "num_prompts": 20,
        "win_rate": 0.6,
        "win_rate_ci95": None,
        "differs": False,
    }


def test_prompts_without_verdict_or_value_are_left_out() -> None:
    slices = slices_of(["kind"], {"kind": ["a", None, "b", "a"]})
    assert slices == {"kind: a": [0, 3], "kind: b": [2]}
    told = sliced([1.0, 1.0, None, 0.0], slices)
    assert {name: one["num_prompts"] for name, one in told.items()} == {"kind: a": 2}


def test_numbers_are_cut_into_quarters_and_few_of_them_are_values() -> None:
    assert slices_of(["n"], {"n": [*range(8)]}) == {
        "n: 0 to 1": [0, 1],
        "n: 2 to 3": [2, 3],
        "n: 4 to 5": [4, 5],
        "n: 6 to 7": [6, 7],
    }
    assert slices_of(["n"], {"n": [True, False, True]}) == {"n: False": [1], "n: True": [0, 2]}
    assert list(slices_of(["n"], {"n": [1, 2, 1]})) == ["n: 1", "n: 2"]


def test_columns_that_make_no_slices_are_refused() -> None:
    with pytest.raises(
        UserError, match="slices=topics: the data has no such column; it has length, topic"
    ):
        slices_of(["topics"], {"topic": ["a"]})
    with pytest.raises(
        UserError, match="slices=id: the column has 21 values; name one with at most 20"
    ):
        slices_of(["id"], {"id": [f"row {row}" for row in range(21)]})
