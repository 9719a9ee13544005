import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from recipes.lib.evaluation.length_control import length_controlled
from recipes.lib.evaluation.logistic import fit_logistic
from recipes.lib.evaluation.win_rate import WinRate


def test_the_fit_is_that_of_scikit_learn_also_on_weighted_rows() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([np.ones(300), rng.normal(size=(300, 2))])
    shares, weights = rng.random(300), rng.integers(0, 4, 300).astype(float)
    ours = fit_logistic(features, shares[None], np.vstack([np.ones(300), weights]))
    for fitted, counts in zip(ours, (np.ones(300), weights), strict=True):
        # A share is so much of a win and the rest of a loss; C is the inverse of the ridge.
        other = LogisticRegression(C=100.0, fit_intercept=False, tol=1e-10, max_iter=1000).fit(
            np.vstack([features, features]),
            np.repeat([1, 0], 300),
            np.concatenate([counts * shares, counts * (1 - shares)]),
        )
        assert fitted == pytest.approx(other.coef_[0], abs=1e-5)


def test_published_values_are_met_where_the_models_are_fitted_together(shared: Path) -> None:
    told = json.loads((shared / "data/evaluation/length_control.json").read_text())
    rows = np.array([model["rows"] for model in told])
    found = length_controlled(rows[:, :, 0], rows[:, :, 1], rows[0, :, 2], num_resamples=200)
    assert found is not None
    assert len(found) == len(told) == 5
    for ours, model in zip(found, told, strict=True):
        assert 100 * ours.value == pytest.approx(model["length_controlled_win_rate"], abs=2)
        assert ours.low < ours.value < ours.high
    alone = length_controlled(rows[:1, :, 0], rows[:1, :, 1], rows[0, :, 2], num_resamples=20)
    assert alone is not None
    assert 100 * alone[0].value == pytest.approx(told[0]["length_controlled_win_rate"], abs=2)


@pytest.mark.parametrize("bias", [2.0, np.inf])
def test_a_judge_that_likes_length_and_nothing_else_is_brought_back_to_a_half(bias: float) -> None:
    raw, controlled, covered = [], [], 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        own, other = rng.integers(20, 90, 400).astype(float), rng.integers(10, 70, 400)
        gaps = own - other
        chance = (np.sign(gaps) + 1) / 2
        if np.isfinite(bias):
            chance = 1 / (1 + np.exp(-bias * np.tanh(gaps / gaps.std(ddof=1))))
        shares = np.where(chance == 0.5, 0.5, rng.random(400) < chance)
        found = length_controlled(shares[None], own[None], other, num_resamples=60)
        assert found is not None
        raw.append(shares.mean())
        controlled.append(found[0].value)
        covered += found[0].low <= 0.5 <= found[0].high
    assert np.mean(raw) > 0.6
    assert np.mean(controlled) == pytest.approx(0.5, abs=0.04)
    assert covered >= 7  # of 10, with few resamples


def test_a_judge_that_does_not_look_at_length_is_left_as_it_is() -> None:
    rng = np.random.default_rng(1)
    own, other = rng.integers(20, 90, 2000), rng.integers(10, 70, 2000)
    shares = (rng.random(2000) < 0.7).astype(float)
    found = length_controlled(shares[None], own[None], other, num_resamples=50)
    assert found is not None
    assert found[0].value == pytest.approx(shares.mean(), abs=0.04)


def test_fewer_than_thirty_prompts_are_too_few() -> None:
    assert length_controlled(np.ones((1, 29)), np.ones((1, 29)), np.ones(29)) is None
    assert length_controlled(np.ones((1, 30)), np.ones((1, 30)), np.ones(30)) is not None


@pytest.mark.parametrize("shares", [np.ones(40), np.zeros(40), np.arange(40) % 2])
@pytest.mark.parametrize("gaps", [np.zeros(40), np.full(40, 7.0), np.arange(40.0) - 20])
def test_no_data_give_nan(shares: np.ndarray, gaps: np.ndarray) -> None:
    found = length_controlled(shares[None].astype(float), 50 + gaps[None], np.full(40, 50.0))
    assert found is not None
    assert all(0 <= number <= 1 for number in vars(found[0]).values())
    if np.ptp(shares) == 0 or not gaps.any():
        assert found[0].value == shares.mean()
    assert isinstance(found[0], WinRate)
