"""The simulated rater: Bradley-Terry draws on the scores of a judge.

P(prefers the first) = sigmoid((score_first - score_second) / temperature)
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rating:
    """What the simulated rater says of one pair.

    Attributes:
        value: 0 if the first completion is preferred, 1 if the second is.
        noise: Probability that a draw on this pair contradicts the order of the scores; 0.5 where
            they are equal. The best possible expected accuracy on the pair is 1 - noise.
    """

    value: int
    noise: float


def preference_probability(difference: float, temperature: float) -> float:
    """Probability that the first completion is preferred.

    Args:
        difference: Score of the first minus score of the second.
        temperature: Difference of scores that counts as one unit of log-odds; above 0.

    Returns:
        A number in 0..1.

    Source: Bradley and Terry, Biometrika 39, 1952.
    """
    # Written with tanh, which does not overflow for any difference.
    return 0.5 * (1.0 + math.tanh(0.5 * difference / temperature))


def rate_pairs(
    first: Sequence[float], second: Sequence[float], *, temperature: float, seed: int
) -> list[Rating]:
    """Rate pairs; the draw of a pair depends on the seed and its position alone.

    Args:
        first: Scores of the first completions.
        second: Scores of the second ones.
        temperature: As in `preference_probability`.
        seed: Of the draws.

    Returns:
        One rating per pair.
    """
    ratings = []
    for position, (one, other) in enumerate(zip(first, second, strict=True)):
        probability = preference_probability(one - other, temperature)
        draw = random.Random(f"rater {seed} {position}").random()
        noise = min(probability, 1.0 - probability)
        ratings.append(Rating(value=0 if draw < probability else 1, noise=noise))
    return ratings
