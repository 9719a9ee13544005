"""The maze: what its text says is enough to solve it, and its optimum is the shortest path."""

import random
from collections import deque
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from recipes.lib.errors import UserError
from recipes.lib.tasks.environments.maze import (
    GOAL,
    GOAL_MARK,
    LETTERS,
    MOVES,
    STEP,
    Layout,
    Maze,
    draw,
)
from scripts.bench.environments.tabular import greedy_return, optimal_values, q_learning

TRAINED = Path(__file__).parents[3] / "recipes/lib/tasks/tales/trained"
SIDES = {"up": (-1, 0, 1), "down": (1, 0, 2), "left": (0, -1, 4), "right": (0, 1, 8)}
# +---+---+   A corridor around the wall between the two upper cells. Open ways: down 2; down 2;
# | a | X |   up and right 1 + 8; up and left 1 + 4.
# +   +   +
# |       |
# +---+---+
CORRIDOR = Layout(
    {
        (0, 0): frozenset({"down"}),
        (0, 1): frozenset({"down"}),
        (1, 0): frozenset({"up", "right"}),
        (1, 1): frozenset({"up", "left"}),
    },
    start=(0, 0),
    goal=(0, 1),
)


def shortest_path(said: str) -> list[str]:
    """The shortest way to the goal, from the text of an observation alone."""
    *rows, last = said.split("\n")
    start, goal = (int(last[0]), int(last[1])), (int(last[3]), int(last[4]))
    came: dict[tuple[int, int], list[str]] = {start: []}
    queue = deque([start])
    while queue:
        row, column = queue.popleft()
        if (row, column) == goal:
            return came[goal]
        for move, (down, right, bit) in SIDES.items():
            beside = row + down, column + right
            if LETTERS.index(rows[row][column].upper()) & bit and beside not in came:
                came[beside] = [*came[row, column], move]
                queue.append(beside)
    raise AssertionError("the goal cannot be reached")


@pytest.mark.parametrize("loops", [0, 3])
@pytest.mark.parametrize("size", [2, 3, 5, 10])
def test_its_text_leads_to_the_goal_with_the_return_of_value_iteration(
    size: int, loops: int
) -> None:
    for number in range(20):
        world = Maze()
        path = shortest_path(world.reset(maze=number, size=size, loops=loops, seed=9))
        layout = draw(number, size, loops)
        assert optimal_values(layout)[layout.start] == pytest.approx(GOAL - STEP * len(path))
        steps = [world.step(move) for move in path]
        assert [done for _, _, done, _ in steps] == [False] * (len(path) - 1) + [True]
        assert sum(reward for _, reward, _, _ in steps) == pytest.approx(GOAL - STEP * len(path))
        assert not any(truncated for *_, truncated in steps)


@pytest.mark.parametrize(("size", "loops", "num_passages"), [(5, 0, 24), (5, 4, 28), (2, 9, 4)])
def test_a_maze_is_a_tree_and_as_many_passages_as_are_asked_for(
    size: int, loops: int, num_passages: int
) -> None:
    for number in range(20):
        ways = draw(number, size, loops).ways
        assert sum(map(len, ways.values())) == 2 * num_passages
        for (row, column), moves in ways.items():
            for move in moves:  # a passage is open from both sides
                down, right, _ = SIDES[move]
                back = next(m for m in SIDES if SIDES[m][:2] == (-down, -right))
                assert back in ways[row + down, column + right]


def test_a_maze_drawn_by_hand_is_said_letter_by_letter() -> None:
    world = Maze()
    world.reset(maze=0, size=2)
    world.layout, world.place = CORRIDOR, (0, 0)
    assert LETTERS[2] + LETTERS[9] + LETTERS[5] == "CKG"
    assert world.step("left") == ("cX\nKG\n00C01", -STEP, False, False)
    assert world.step("down") == ("CX\nkG\n10K01", -STEP, False, False)
    assert world.step("R") == ("CX\nKg\n11G01", -STEP, False, False)
    assert world.step(" up\n") == ("Cc\nKG\n01C01", GOAL - STEP, True, False)
    assert optimal_values(CORRIDOR) == pytest.approx(
        {(0, 0): 0.85, (1, 0): 0.9, (1, 1): 0.95, (0, 1): 0.0}
    )


@pytest.mark.parametrize("text", ["", " ", "north", "upward", "up down", "7", "\ud800"])
def test_what_is_no_move_costs_the_step(text: str) -> None:
    world = Maze()
    before = world.reset(maze=1)
    assert world.step(text) == (before, -STEP, False, False)


def test_without_the_map_later_observations_are_the_place() -> None:
    full, short = Maze(), Maze()
    assert full.reset(maze=3) == short.reset(maze=3, map_again=False)
    for move in "URDLURDL":
        said, *rest = full.step(move)
        told, *others = short.step(move)
        assert (told, others) == (said.split("\n")[-1][:3], rest)


def test_equal_texts_are_answered_equally() -> None:
    rng = random.Random(5)
    texts = [rng.choice([*MOVES, "?"]) for _ in range(40)]
    first, again = Maze(), Maze()
    assert first.reset(maze=7, seed=1) == again.reset(maze=7, seed=2)
    assert [first.step(text) for text in texts] == [again.step(text) for text in texts]
    assert draw(7, 5) != draw(8, 5)


def test_the_tales_tokenizer_reads_a_cell_as_a_token() -> None:
    tokenizer = Tokenizer.from_file(str(TRAINED / "tokenizer.json"))

    def length(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    marks = [*LETTERS, GOAL_MARK]
    for mine in LETTERS.lower():
        for other in marks:
            assert [length(mine + other), length(other + mine)] == [2, 2], (mine, other)
    world = Maze()
    for number in range(50):
        assert length(world.reset(maze=number)) == 25 + 5 + 5
    assert {length(move[0].upper()) for move in MOVES} == {1}


@pytest.mark.parametrize("size", [1, 11])
def test_a_size_that_digits_cannot_name_is_refused(size: int) -> None:
    with pytest.raises(
        UserError, match=f"^size={size}: a maze has 2 to 10 cells a side; change the row.$"
    ):
        Maze().reset(maze=0, size=size)


def test_q_learning_ends_on_the_shortest_path() -> None:
    for maze in range(5):
        row = {"maze": maze, "size": 5}
        episodes = q_learning(Maze, row, list(MOVES), random.Random(maze))
        steps = len(shortest_path(Maze().reset(**row)))
        returns = []
        for _ in range(40):
            table, _turns = next(episodes)
            returns.append(greedy_return(Maze, {**row, "seed": 0}, table, 25))
        assert returns[0] < GOAL - STEP * steps  # nothing is known before anything was tried
        assert returns[-1] == pytest.approx(GOAL - STEP * steps)
