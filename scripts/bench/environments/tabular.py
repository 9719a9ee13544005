"""Tabular methods for worlds of text: value iteration of a maze, Q-learning of whatever is told."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from recipes.lib.tasks.environments.maze import GOAL, STEP, Cell, Layout, neighbour

Table = dict[str, dict[str, float]]


def optimal_values(layout: Layout) -> dict[Cell, float]:
    """The best return from each cell of a maze, by value iteration without discount.

    Args:
        layout: The maze.

    Returns:
        The values by cell; 0 at the goal, where an episode is over.
    """
    values = dict.fromkeys(layout.ways, 0.0)
    while True:
        renewed = {
            cell: 0.0
            if cell == layout.goal
            else max(
                GOAL * (other == layout.goal) - STEP + values[other]
                for other in (neighbour(cell, move) for move in layout.ways[cell])
            )
            for cell in values
        }
        if renewed == values:
            return values
        values = renewed


def q_learning(
    make: Callable[[], Any],
    row: dict[str, Any],
    words: Sequence[str],
    rng: random.Random,
    *,
    rate: float = 1.0,
    explored: float = 0.1,
    max_turns: int = 1000,
) -> Iterator[tuple[Table, int]]:
    """Q-learning where a state is an observation's text; values begin with 0.

    Args:
        make: The world's class.
        row: What it is reset with; each episode has a seed of its own.
        words: What may be said.
        rng: Source of every choice.
        rate: How far a value moves to its target; 1 suits a world without chance.
        explored: Share of words that are drawn at random; of equally good ones one is drawn.
        max_turns: After as many an episode is cut off.

    Yields:
        After each episode the table, which goes on changing, and the turns of the episode.
    """
    table: Table = defaultdict(lambda: dict.fromkeys(words, 0.0))
    while True:
        world = make()
        state, turns, done, truncated = (
            world.reset(seed=rng.getrandbits(32), **row),
            0,
            False,
            False,
        )
        while not (done or truncated) and turns < max_turns:
            said = rng.choice(list(words)) if rng.random() < explored else best(table[state], rng)
            after, reward, done, truncated = world.step(said)
            target = reward + (0.0 if done else max(table[after].values()))
            table[state][said] += rate * (target - table[state][said])
            state, turns = after, turns + 1
        yield table, turns


def best(values: dict[str, float], rng: random.Random) -> str:
    """The word of the highest value; one of them where there are several."""
    top = max(values.values())
    return rng.choice([word for word, value in values.items() if value == top])


def greedy_return(
    make: Callable[[], Any], row: dict[str, Any], table: Table, max_turns: int
) -> float:
    """The return of the table's best words; minus infinity where one is not decided.

    Args:
        make: The world's class.
        row: What it is reset with, a seed among it.
        table: Values of words by observation.
        max_turns: After as many the episode is given up.
    """
    world = make()
    state, total, done, truncated = world.reset(**row), 0.0, False, False
    for _ in range(max_turns):
        values = table.get(state, {})
        tops = [word for word, value in values.items() if value == max(values.values())]
        if len(tops) != 1:
            return -float("inf")
        state, reward, done, truncated = world.step(tops[0])
        total += reward
        if done or truncated:
            return total
    return -float("inf")
