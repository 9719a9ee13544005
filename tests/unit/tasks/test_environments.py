"""The contract of docs/environments.md, kept by every world and by the examples of the page."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.tasks.environments.cartpole import CartPole
from recipes.lib.tasks.environments.guessing import Guessing
from recipes.lib.tasks.environments.maze import Maze
from recipes.lib.tasks.environments.sums import Sums

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/environments.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, Any] = {}
for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
    exec(code, EXAMPLES)
WORLDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "maze": (Maze, {"maze": 4, "size": 3}),
    "cartpole": (CartPole, {"episode": 1}),
    "guessing": (Guessing, {"animals": "fox owl hen", "turns": 6}),
    "sums": (Sums, {"sum": "2*3+4"}),
    "higher": (EXAMPLES["Higher"], {"top": 9}),
    "lake": (EXAMPLES["Lake"], {}),
}
TEXTS = ["", "U", "down", "right", "L", "Is it small?", "calc:1+1", "5", "?", "\ud800"]


def play(name: str, seed: int, texts: list[str]) -> list[Any]:
    make, row = WORLDS[name]
    world = make()
    answers: list[Any] = [world.reset(seed=seed, **row, unknown_column="x")]
    for text in texts:
        answers.append(world.step(text))
        if answers[-1][2] or answers[-1][3]:
            break
    return answers


@pytest.mark.parametrize("name", WORLDS)
def test_equal_row_seed_and_texts_are_answered_equally_whatever_else_is_drawn(name: str) -> None:
    rng = random.Random(2)
    for seed in range(20):
        texts = rng.choices(TEXTS, k=12)
        random.seed(seed)
        first = play(name, seed, texts)
        random.seed(-1)
        assert play(name, seed, texts) == first
        assert isinstance(first[0], str)
        for said, reward, done, truncated in first[1:]:
            assert (type(said), type(reward)) == (str, float)
            assert (type(done), type(truncated)) == (bool, bool)


def test_the_example_of_the_page_is_won_by_halving() -> None:
    for seed in range(50):
        world = EXAMPLES["Higher"]()
        assert world.reset(seed=seed) == "I think of a number from 1 to 100."
        low, high, turns, done = 1, 100, 0, False
        while not done:
            turns += 1
            guess = (low + high) // 2
            said, reward, done, _ = world.step(f" {guess}\n")
            low, high = (guess + 1, high) if said == "Higher." else (low, guess - 1)
        assert (said, reward) == ("Yes.", 1.0)
        assert turns <= 7


def test_the_maze_of_the_page_is_maze_1() -> None:
    assert f"```\n{Maze().reset(maze=1)}\n```" in PAGE
