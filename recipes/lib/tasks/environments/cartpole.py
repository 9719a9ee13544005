"""Worlds of gymnasium as text, and CartPole: four letters are read, a word is answered.

What a text means as an action is given by words; a text that is none of them acts at random, by
the world's seed, as a hand that slipped.

Source: Barto, Sutton and Anderson, Neuronlike Adaptive Elements That Can Solve Difficult Learning
Control Problems, 1983.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Sequence
from typing import Any

from recipes.lib.errors import UserError

# How far the letters reach on either side of zero: place, speed, angle (radians) and its speed.
# Beyond this place or angle the episode is over.
WIDEST = (2.4, 3.0, 0.21, 3.0)
LETTERS = string.ascii_uppercase


class Gymnasium:
    """A world of gymnasium with numbered actions, told and played in words.

    Args:
        name: Its id, such as "CartPole-v1".
        say: Tells an observation in text.
        words: The word for each action, by its number; a beginning of a word means it too.
    """

    def __init__(self, name: str, say: Callable[[Any], str], words: Sequence[str]) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise UserError(
                f"environment {name}: gymnasium is not installed; pip install 'rlhf-recipes[env]'."
            ) from error
        self.world: gymnasium.Env[Any, Any] = gymnasium.make(name)
        self.say, self.words = say, words

    def reset(self, seed: int, **_: Any) -> str:
        """Begin an episode, which gymnasium draws from the seed; the first observation."""
        self.slips = random.Random(seed)
        observation, _ = self.world.reset(seed=seed)
        return self.say(observation)

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        """Act; `truncated` is gymnasium's own time limit."""
        word = text.strip().lower()
        meant = [number for number, name in enumerate(self.words) if word and name.startswith(word)]
        action = meant[0] if meant else self.slips.randrange(len(self.words))
        observation, reward, done, truncated, _ = self.world.step(action)
        return self.say(observation), float(reward), done, truncated


class CartPole(Gymnasium):
    """A pole on a cart: 1 for each step that it stands, for at most 500 steps."""

    def __init__(self) -> None:
        super().__init__("CartPole-v1", four_letters, ("left", "right"))


def four_letters(observation: Sequence[float]) -> str:
    """Place, speed, angle and its speed as letters in equal bins; N is the first not negative."""
    half = len(LETTERS) // 2
    bins = [half + math.floor(half * a / b) for a, b in zip(observation, WIDEST, strict=True)]
    return "".join(LETTERS[min(max(number, 0), 2 * half - 1)] for number in bins)
