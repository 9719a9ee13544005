"""Rows of the worlds: held-out ones are held out, and play at random is what SFT reads."""

import runpy
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.runs.files import read_jsonl
from recipes.lib.tasks.environments.guessing import TRAITS
from recipes.lib.tasks.environments.maze import GOAL, STEP, Maze, draw
from scripts.bench.environments.tabular import optimal_values

ROOT = Path(__file__).parents[3]
main = runpy.run_path(str(ROOT / "scripts/environment_rows"))["main"]
Rows = dict[str, list[dict[str, Any]]]


def written(folder: Path, *words: str) -> Rows:
    sizes = ("--num_train", "150", "--num_test", "60", "--num_sft", "200")
    assert main([*words, "--target", str(folder), *sizes]) == 0
    files = sorted(folder.glob("*/*.jsonl"))
    return {f"{path.parent.name} {path.stem}": read_jsonl(path) for path in files}


def about(row: dict[str, Any]) -> Any:
    """What a row is about, which has to be on one side alone."""
    if "maze" in row:
        return draw(row["maze"], row["size"]).ways
    return set(row["animals"].split()) if "animals" in row else row["sum"]


@pytest.mark.parametrize("words", [("maze", "--size", "3"), ("maze",), ("guessing",), ("sums",)])
def test_what_is_held_out_is_in_no_training_file(words: tuple[str, ...], tmp_path: Path) -> None:
    rows = written(tmp_path, *words)
    assert {name: len(made) for name, made in rows.items()} == {
        "ppo test": 60,
        "ppo train": 150,
        "sft test": 20,
        "sft train": 200,
    }
    train, test = (list(map(about, rows[f"ppo {split}"])) for split in ("train", "test"))
    assert not [one for one in test if one in train]
    asked = [
        {row["messages"][0]["content"] for row in rows[f"sft {split}"]}
        for split in ("train", "test")
    ]
    assert not asked[0] & asked[1]
    assert written(tmp_path, *words) == rows  # the same again


def test_walks_of_a_maze_are_far_longer_than_the_shortest(tmp_path: Path) -> None:
    rows = written(tmp_path, "maze", "--size", "3")
    played = zip(rows["sft train"], rows["ppo train"] * 2, strict=False)
    walked = shortest = reached = 0.0
    for number, (said, row) in enumerate(played):
        world, messages = Maze(), said["messages"]
        assert [turn["role"] for turn in messages] == ["user", "assistant"] * (len(messages) // 2)
        observation = world.reset(seed=number, **row)
        done = False
        for asked, answer in zip(messages[::2], messages[1::2], strict=True):
            assert asked["content"] == observation
            assert not done
            observation, _, done, _ = world.step(answer["content"])
        layout = draw(row["maze"], 3)
        reached += done
        walked += len(messages) // 2
        shortest += round((GOAL - optimal_values(layout)[layout.start]) / STEP)
    assert 0.2 < reached / 200 < 0.9
    assert walked > 2.5 * shortest


def test_of_animals_is_told_what_is_so_and_play_guesses_what_is_left(tmp_path: Path) -> None:
    rows = written(tmp_path, "guessing")
    told, right = rows["sft train"][1::2], dict.fromkeys(TRAITS, 0)
    for asked, said in (row["messages"] for row in told):
        animal = asked["content"].removeprefix("The ").removesuffix("?")
        words = said["content"].removeprefix("It is ").removesuffix(".").replace(" and ", ", ")
        for word in words.split(", "):
            trait = word.removeprefix("not ")
            assert (animal in TRAITS[trait]) == (word == trait)
            right[trait] += 1
    assert right == dict.fromkeys(TRAITS, len(told))
    guesses = 0
    for row in (*rows["sft train"][::2], *rows["sft test"]):
        first, *messages = [one["content"] for one in row["messages"]]
        left = set(first.removeprefix("One of ").partition(".")[0].split())
        for said, answer in zip_longest(messages[::2], messages[1::2]):
            name = said.removeprefix("The ").removeprefix("Is it ").rstrip(".?")
            if answer is None and said.startswith("The "):
                assert name in left
                guesses += 1
            elif answer is not None:
                left = {one for one in left if (one in TRAITS[name]) == (answer == "Yes.")}
    assert guesses > 60


def test_with_context_last_a_row_is_a_turn(tmp_path: Path) -> None:
    rows = written(tmp_path, "maze", "--context", "last")
    assert {row["map_again"] for row in rows["ppo train"]} == {True}
    for row in rows["sft train"]:
        (asked,), (said,) = row["prompt"], row["completion"]
        assert (asked["role"], asked["content"].count("\n")) == ("user", 5)
        assert (said["role"], said["content"] in "UDLR") == ("assistant", True)
    pushes = written(tmp_path / "cartpole", "cartpole")["sft train"]
    assert {row["completion"][0]["content"] for row in pushes} == {"L", "R"}
    assert {len(row["prompt"][0]["content"]) for row in pushes} == {4}


def test_a_mistake_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["maze", "--size", "1", "--target", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "environment_rows: error: size=1: a maze has 2 to 10 cells a side; change the row.\n"
    )
    assert not list(tmp_path.iterdir())
