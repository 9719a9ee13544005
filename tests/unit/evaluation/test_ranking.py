import numpy as np
import pytest

from recipes.lib.evaluation.logistic import bradley_terry


def test_of_two_the_strengths_are_the_log_odds_of_the_win_rate() -> None:
    told = bradley_terry(["a", "b"], {(0, 1): [1.0] * 700 + [0.5] * 100 + [0.0] * 200})
    # 750 of 1000: half of log(0.75 / 0.25) above and below 0.
    assert list(told) == ["a", "b"]
    assert told["a"]["strength"] == pytest.approx(np.log(3) / 2, abs=1e-3)
    assert told["b"]["strength"] == pytest.approx(-told["a"]["strength"])
    assert (told["a"]["win_rate"], told["b"]["win_rate"]) == (0.75, 0.25)
    low, high = told["a"]["strength_ci95"]
    # The log-odds have the standard error 1 / sqrt(n p q), a little less with ties.
    assert high - low == pytest.approx(2 * 1.96 * 0.0657 / 2, rel=0.15)


def test_strengths_that_follow_the_model_are_found_exactly() -> None:
    truth = np.array([1.0, 0.2, -1.2])
    shares = {
        (a, b): [float(1 / (1 + np.exp(truth[b] - truth[a])))] * 2000
        for a, b in ((0, 1), (0, 2), (1, 2))
    }
    told = bradley_terry("cba", shares, num_resamples=20)
    assert list(told) == ["c", "b", "a"]
    assert [one["strength"] for one in told.values()] == pytest.approx(truth, abs=1e-4)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    truth, held = np.array([0.5, 0.0, -0.5]), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shares = {
            (a, b): list((rng.random(150) < 1 / (1 + np.exp(truth[b] - truth[a]))).astype(float))
            for a, b in ((0, 1), (0, 2), (1, 2))
        }
        found = bradley_terry("abc", shares, seed=seed, num_resamples=200)
        for name, value in zip("abc", truth, strict=True):
            low, high = found[name]["strength_ci95"]
            held.append(low <= value <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.04)


def test_one_that_lost_everything_and_what_nobody_judged_stay_finite() -> None:
    shares = {(0, 1): [1.0] * 20, (0, 2): [1.0, None] * 10, (1, 2): [0.5] * 20}
    found = bradley_terry("abc", shares)
    numbers = [[one["strength"], *one["strength_ci95"]] for one in found.values()]
    assert np.isfinite(numbers).all()
    assert {name: one["win_rate"] for name, one in found.items()} == {
        "a": 1.0,
        "b": 10 / 40,
        "c": 10 / 30,
    }
    assert next(iter(found)) == "a"
