#!/usr/bin/env python3
"""What tabular methods reach in the worlds of text, as the yardstick of PPO.

    .venv/bin/python scripts/bench/environments/classical.py --page docs/benchmarks/environments.md

prints the tables and writes the section "Tabular" of the page. Half a minute on one core.
"""

import argparse
import random
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.tasks.environments.guessing import QUESTION, TRAITS  # noqa: E402
from recipes.lib.tasks.environments.maze import MOVES, Maze, draw  # noqa: E402
from recipes.lib.tasks.tales.words import ANIMALS  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.environments.tabular import (  # noqa: E402
    greedy_return,
    optimal_values,
    q_learning,
)

COMMAND = ".venv/bin/python scripts/bench/environments/classical.py --page FILE"
MAZES, SIZES = 20, (3, 5, 8)
EPISODES = 60
HEADING = "## Tabular"
NOTE = """Q-learning reads an observation as one symbol and learns in the one maze in which it is
asked; a policy of PPO is asked in mazes that it never saw. The optimum is by value iteration. An
episode is counted as the first after which the greedy policy, without a tie anywhere on its way,
has the optimal return; `stays` are the mazes in which it then keeps it until episode 60. Learning
rate 1, a move in ten at random, values begin with 0; mazes 0 to 19, each number is the seed too.
"""
GUESSING = """A guessing game of four animals, drawn 500 times, played for the best expected return
(search over all questions); `right` is the share of right guesses of this play.
"""


def maze_row(size: int) -> list[Any]:
    """A row of the table of mazes: how soon the greedy policy has the optimal return."""
    firsts, steps, values, stays = [], [], [], 0
    for maze in range(MAZES):
        layout = draw(maze, size)
        values.append(optimal_values(layout)[layout.start])
        turns, is_optimal = zip(*islice(learn(maze, size), EPISODES), strict=True)
        if any(is_optimal):
            firsts.append(is_optimal.index(True) + 1)
            steps.append(sum(turns[: firsts[-1]]))
            stays += all(is_optimal[firsts[-1] :])
    found, spread = f"{len(firsts)} of {MAZES}", f"{min(firsts)} to {max(firsts)}"
    middle = [round(median(steps)), mean(values)]
    return [f"{size}x{size}", found, median(firsts), spread, stays, *middle]


def learn(maze: int, size: int) -> Iterator[tuple[int, bool]]:
    """After each episode of Q-learning: its turns, and whether the greedy policy is optimal."""
    layout, row = draw(maze, size), {"maze": maze, "size": size}
    goal = optimal_values(layout)[layout.start]
    for table, turns in q_learning(Maze, row, list(MOVES), random.Random(maze)):
        reached = greedy_return(Maze, {**row, "seed": 0}, table, size * size)
        yield turns, abs(reached - goal) < 1e-9


def best_guessing(animals: frozenset[str], turns: int, turn: int = 0) -> tuple[float, float]:
    """The best play of a guessing game.

    Args:
        animals: Those that it can still be.
        turns: Turns of the game.
        turn: Turns that are gone.

    Returns:
        Its expected return, and the share of right guesses.
    """
    right = 1 / len(animals)
    plays = [((1 - QUESTION * turn) * right, right)]
    for quality in TRAITS.values() if turn + 1 < turns else ():
        yes = animals & frozenset(quality)
        if yes and yes != animals:
            (won, sure), (won_else, sure_else) = (
                best_guessing(part, turns, turn + 1) for part in (yes, animals - yes)
            )
            share = len(yes) / len(animals)
            plays.append(
                (share * won + (1 - share) * won_else, share * sure + (1 - share) * sure_else)
            )
    return max(plays)


def guessing_row(turns: int) -> list[Any]:
    """A row of the table of guessing: the best play in so many turns."""
    rng = random.Random(0)
    plays = [best_guessing(frozenset(rng.sample(ANIMALS, 4)), turns) for _ in range(500)]
    return [turns, mean(play[0] for play in plays), mean(play[1] for play in plays)]


def table(heads: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; numbers with three digits."""
    lines = [heads, ["---"] * len(heads), *rows]
    cells = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def with_section(page: str, section: str) -> str:
    """The page with the section in place of the one of the same heading, or at its end."""
    heading = section.partition("\n")[0]
    old = re.compile(rf"^{re.escape(heading)}$.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if old.search(page):
        return old.sub(lambda _: section.rstrip() + "\n\n", page).rstrip() + "\n"
    return f"{page.rstrip()}\n\n{section.rstrip()}\n"


def main() -> int:
    """Prints the tables, and writes them where a page is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path)
    page: Path | None = parser.parse_args().page
    heads = "mazes|optimal in|episodes, median|spread|stays|steps until then, median|mean optimum"
    mazes = table(heads.split("|"), [maze_row(size) for size in SIZES])
    games = table(["turns", "return", "right"], [guessing_row(turns) for turns in range(1, 7)])
    section = f"{HEADING}\n\n{conditions(COMMAND)}\n\n{NOTE}\n{mazes}\n\n{GUESSING}\n{games}\n"
    print(section)
    if page is not None:
        old = page.read_text(encoding="utf-8") if page.is_file() else "# Environments\n"
        page.write_text(with_section(old, section), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
