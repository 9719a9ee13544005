import math
from typing import Any

import pytest

from recipes.lib.feedback.simulation import Rater, preference_probability, simulate_answers


def rate_pairs(
    first: list[float], second: list[float], *, temperature: float, seed: int
) -> list[dict[str, Any]]:
    """The rows of the rater that needs no name."""
    said = {"prompt": "?", "completions": [{"content": "a"}, {"content": "b"}]}
    items = [said | {"id": f"{number}"} for number in range(len(first))]
    given = {"kinds": ["pair"], "raters": [Rater(temperature=temperature)], "seed": seed}
    scores = list(zip(first, second, strict=True))
    return simulate_answers(items, scores, created_at="2026-01-01", **given)


def test_preference_probability_is_the_logistic_of_the_difference_over_the_temperature() -> None:
    assert preference_probability(0.0, 0.5) == 0.5
    # exp(log 3) = 3 to 1.
    assert preference_probability(0.5 * math.log(3), 0.5) == pytest.approx(0.75)
    assert preference_probability(-2.0 * math.log(9), 2.0) == pytest.approx(0.1)


def test_preference_probability_bears_any_difference() -> None:
    assert preference_probability(1e300, 1e-3) == 1.0
    assert preference_probability(-1e300, 1e-3) == 0.0


def test_frequencies_of_the_rater_are_those_of_the_closed_form() -> None:
    number = 20_000
    for odds in (1.0, 3.0, 9.0):
        probability = odds / (odds + 1.0)
        ratings = rate_pairs([math.log(odds)] * number, [0.0] * number, temperature=1.0, seed=4)
        share = sum(rating["value"] == 0 for rating in ratings) / number
        # Four standard deviations of a binomial share.
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / number)


def test_noise_is_the_probability_of_a_label_against_the_order_of_the_scores() -> None:
    scores = [math.log(4.0), 0.0, 0.3]
    others = [0.0, math.log(4.0), 0.3]
    noises = [rating["noise"] for rating in rate_pairs(scores, others, temperature=1.0, seed=0)]
    assert noises == pytest.approx([0.2, 0.2, 0.5])


def test_labels_contradict_the_scores_as_often_as_the_noise_says() -> None:
    scores = [math.sin(7 * row) * 2 for row in range(20_000)]
    ratings = rate_pairs(scores, [0.0] * len(scores), temperature=0.8, seed=1)
    wrong = [
        (score > 0) == (rating["value"] == 1) for score, rating in zip(scores, ratings, strict=True)
    ]
    noises = [rating["noise"] for rating in ratings]
    deviation = math.sqrt(sum(noise * (1 - noise) for noise in noises))
    assert abs(sum(wrong) - sum(noises)) < 4 * deviation


def test_a_rating_depends_on_seed_and_position_alone() -> None:
    long = rate_pairs([0.1] * 100, [0.0] * 100, temperature=1.0, seed=3)
    assert rate_pairs([0.1] * 40, [0.0] * 40, temperature=1.0, seed=3) == long[:40]
    assert rate_pairs([0.1] * 100, [0.0] * 100, temperature=1.0, seed=4) != long
