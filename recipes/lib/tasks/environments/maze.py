"""A maze as text: a letter for each cell says which ways are open, an action is a word.

    reward of a step = -STEP, and GOAL more where it arrives

A wall, or a text that is no move, costs the step and changes nothing. From d steps away the best
return is therefore GOAL - STEP * d.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from recipes.lib.errors import UserError

STEP, GOAL = 0.05, 1.0
MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
# The letter of a cell by its open ways, of which up counts 1, down 2, left 4 and right 8. F, O and
# P are left out: before a small letter the tokenizer of the tales would join them with it.
LETTERS = "ABCDEGHIJKLMNQRS"
GOAL_MARK = "X"

Cell = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """The open moves of each cell (row, column), where one begins, and where one has to go."""

    ways: dict[Cell, frozenset[str]]
    start: Cell
    goal: Cell


def neighbour(cell: Cell, move: str) -> Cell:
    """The cell beside a cell, inside the maze or not."""
    return cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]


def draw(maze: int, size: int, loops: int = 0) -> Layout:
    """Draw a maze by randomised depth-first search: there is one path between any two cells.

    Args:
        maze: Number of the maze, from which alone it is drawn.
        size: Cells a side.
        loops: Walls that are opened afterwards; with any there may be several paths.

    Returns:
        The maze, with a start and another cell as the goal.

    Raises:
        UserError: A side has fewer than two cells, or more than a digit can name.
    """
    if not 2 <= size <= 10:
        raise UserError(f"size={size}: a maze has 2 to 10 cells a side; change the row.")
    rng = random.Random(f"maze {maze} {size} {loops}")
    cells = [(row, column) for row in range(size) for column in range(size)]
    near = {cell: [n for move in MOVES if (n := neighbour(cell, move)) in cells] for cell in cells}
    opened = set()
    path = [rng.choice(cells)]
    seen = set(path)
    while path:
        if fresh := [cell for cell in near[path[-1]] if cell not in seen]:
            cell = rng.choice(fresh)
            opened |= {(path[-1], cell), (cell, path[-1])}
            seen.add(cell)
            path.append(cell)
        else:
            path.pop()
    walls = [(a, b) for a in cells for b in near[a] if a < b and (a, b) not in opened]
    for a, b in rng.sample(walls, min(loops, len(walls))):
        opened |= {(a, b), (b, a)}
    ways = {a: frozenset(m for m in MOVES if (a, neighbour(a, m)) in opened) for a in cells}
    return Layout(ways, *rng.sample(cells, 2))


class Maze:
    """A maze that is walked through; nothing in it is left to chance."""

    def reset(
        self, maze: int, size: int = 5, loops: int = 0, map_again: bool = True, **_: Any
    ) -> str:
        """Begin a maze.

        Args:
            maze: Number of the maze, as of `draw`.
            size: Cells a side.
            loops: Walls that are opened afterwards.
            map_again: Every observation has the map, as `context: last` needs it. Otherwise later
                ones have only the place, in three tokens.

        Returns:
            The map, and the place.
        """
        self.layout, self.size, self.map_again = draw(maze, size, loops), size, map_again
        self.place = self.layout.start
        return self._say(True)

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        """Take a step; the text is a move or its beginning, such as "up" or "U"."""
        word = text.strip().lower()
        move = next((move for move in MOVES if word and move.startswith(word)), None)
        if move in self.layout.ways[self.place]:
            self.place = neighbour(self.place, move)
        done = self.place == self.layout.goal
        return self._say(self.map_again), GOAL * done - STEP, done, False

    def _say(self, with_map: bool) -> str:
        row, column = self.place
        said = f"{row}{column}{self._letter(self.place)}"
        if not with_map:
            return said
        side = range(self.size)
        rows = ["".join(self._mark((row, column)) for column in side) for row in side]
        return "\n".join([*rows, said + "{}{}".format(*self.layout.goal)])

    def _mark(self, cell: Cell) -> str:
        letter = self._letter(cell)
        if cell == self.place:
            return letter.lower()
        return GOAL_MARK if cell == self.layout.goal else letter

    def _letter(self, cell: Cell) -> str:
        ways = self.layout.ways[cell]
        return LETTERS[sum(2**bit for bit, move in enumerate(MOVES) if move in ways)]
