"""Worlds in which episodes are played: found, asked, and played again where they were lost.

    class World:
        def reset(self, **row) -> str: ...
        def step(self, text: str) -> tuple[str, float, bool, bool]: ...

`row` are the columns of the data set and `seed`, which all randomness of the episode comes from.
`step` gets what the policy wrote and returns what it reads next, a reward, whether the episode is
over, and whether a time limit of the world's own cut it off. Equal rows and texts have equal
answers, so an episode is known by them, whatever became of the process that it was played in.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.lib.errors import UserError, is_memory
from recipes.lib.rewards.loading import load_function
from recipes.lib.rewards.retries import RewardProcess, is_transient, with_retries

Answer = tuple[str, float, bool, bool]  # what is read next, reward, over, cut off


class Worlds:
    """The worlds of several episodes.

    Args:
        make: The class of a world, or what else makes one.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.__name__ = str(getattr(make, "__name__", type(make).__name__))
        self.playing: dict[int, tuple[Any, int]] = {}  # by seed: the world, and how many texts

    def __call__(self, rows: Sequence[dict[str, Any]], texts: Sequence[list[str]]) -> list[Answer]:
        """What each world says at last.

        Args:
            rows: What each was begun with, its `seed` among it.
            texts: All that the policy wrote in it; nothing to begin it.

        Returns:
            The answer to the last text. A world that is not at hand is played again up to there;
            where others go on, one that is not asked is forgotten.

        Raises:
            UserError: A world failed twice, or answered something else.
        """
        if all(texts):  # nobody begins: these are all that are being played
            asked = {row["seed"] for row in rows}
            self.playing = {seed: world for seed, world in self.playing.items() if seed in asked}
        return [self._patient(row, said) for row, said in zip(rows, texts, strict=True)]

    def _patient(self, row: dict[str, Any], said: list[str]) -> Answer:
        try:
            return self._answer(row, said)
        except Exception as error:
            if _is_told_by_others(error):
                raise
        try:  # once more, from the beginning: its state may be what failed
            return self._answer(row, said)
        except Exception as error:
            if _is_told_by_others(error):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            sentence = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"environment {self.__name__} raised {type(error).__name__} twice: {sentence} "
                f"({Path(last.filename).name}, line {last.lineno}); mend it."
            ) from error

    def _answer(self, row: dict[str, Any], said: list[str]) -> Answer:
        world, told = self.playing.pop(row["seed"], (None, -1))
        if world is None or told != len(said) - 1:
            world, told = self.make(), 0
            begin = world.reset(**row)
            if not isinstance(begin, str):
                raise UserError(
                    f"environment {self.__name__}: reset returned {begin!r}; return a text."
                )
            answer: Answer = (begin, 0.0, False, False)
        for text in said[told:]:
            answer = self._checked(world.step(text))
        self.playing[row["seed"]] = world, len(said)
        return answer

    def _checked(self, said: Any) -> Answer:
        is_four = isinstance(said, (tuple, list)) and len(said) == 4
        if not is_four or not isinstance(said[0], str) or not _is_number(said[1]):
            raise UserError(
                f"environment {self.__name__}: step returned {said!r}; return a text, a finite "
                "reward, whether it is over, and whether it was cut off."
            )
        return said[0], float(said[1]), bool(said[2]), bool(said[3])


def _is_told_by_others(error: Exception) -> bool:
    return is_memory(error) or isinstance(error, UserError) or is_transient(error)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def load_worlds(reference: str, timeout: float | None, retries: int) -> Callable[..., list[Answer]]:
    """Find an environment by where it is.

    Args:
        reference: `file.py:Class` or `package.module:Class`.
        timeout: Seconds for the answers to a turn, and as many for each that has to be played
            again; with it, worlds live in a process of their own, which is killed and started
            anew. None for no limit.
        retries: How often they are asked again where time ran out or the process died.

    Returns:
        What `Worlds` is.

    Raises:
        UserError: It is not there, or no environment.
    """
    found = load_function(reference)
    if timeout is None:
        return as_worlds(found, retries)
    check_world(found)
    maker = f"{Worlds.__module__}:{Worlds.__name__}"
    process = RewardProcess(reference, Worlds(found).__name__, timeout, maker)
    return _asked_again(process, retries)


def as_worlds(environment: Any, retries: int = 1) -> Callable[..., list[Answer]]:
    """An environment as it is asked.

    Args:
        environment: Its class, what else makes one without arguments, its reference, or what this
            function or `load_worlds` returned.
        retries: As of `load_worlds`.

    Returns:
        What `Worlds` is.

    Raises:
        UserError: It is no environment.
    """
    if isinstance(environment, str):
        return load_worlds(environment, None, retries)
    if hasattr(environment, "plays_worlds"):
        return environment
    check_world(environment)
    return _asked_again(Worlds(environment), retries)


def check_world(environment: Any) -> None:
    """Refuse what makes no environment, as far as that can be seen."""
    is_class = inspect.isclass(environment)
    has_both = all(callable(getattr(environment, name, None)) for name in ("reset", "step"))
    if not callable(environment) or (is_class and not has_both):
        name = getattr(environment, "__name__", repr(environment))
        raise UserError(f"environment {name}: give a class that has reset and step.")


def _asked_again(worlds: Any, retries: int) -> Any:
    made = with_retries(worlds, retries, "environment")
    made.plays_worlds = True  # type: ignore[attr-defined]
    return made


def world_seed(seed: int, episode: int) -> int:
    """Seed of an episode's world, a function of the run's seed and its number alone."""
    drawn = np.random.SeedSequence([seed % 2**64, episode]).generate_state(1, np.uint64)
    return int(drawn[0] >> 11)  # 53 bits, which JSON keeps
