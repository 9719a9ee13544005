"""Worlds: asked, played again where they were lost, patient with what fails."""

from pathlib import Path
from typing import Any

import pytest

from recipes.lib.environments.worlds import Worlds, as_worlds, load_worlds, world_seed
from recipes.lib.errors import UserError

COUNTER = '''
import os, time
from pathlib import Path

class Counter:
    """Counts what it is told, and notes each beginning in a file."""

    def reset(self, seed, note, **row):
        self.seed, self.said = seed, []
        with open(note, "a") as file:
            file.write(f"{seed}\\n")
        self.note = Path(note)
        return f"begin {seed}"

    def step(self, text):
        self.said.append(text)
        failing = self.note.with_suffix(".fail")
        if text in ("raise", "die", "hang") and failing.exists():
            kind = failing.read_text()
            if kind == "once":
                failing.unlink()
            if text == "raise":
                raise ValueError("the die is on its edge")
            if text == "die":
                os._exit(7)
            time.sleep(60)
        return f"{len(self.said)} {text}", float(len(self.said)), text == "end", text == "cut"
'''


@pytest.fixture
def counter(tmp_path: Path) -> str:
    file = tmp_path / "worlds.py"
    file.write_text(COUNTER, encoding="utf-8")
    return f"{file}:Counter"


def row(folder: Path, seed: int) -> dict[str, Any]:
    return {"seed": seed, "note": str(folder / "note")}


def begun(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "note").read_text().split()]


@pytest.mark.parametrize("timeout", [None, 20.0], ids=["here", "in a process"])
def test_worlds_answer_side_by_side(tmp_path: Path, counter: str, timeout: float | None) -> None:
    worlds = load_worlds(counter, timeout, 0)
    rows = [row(tmp_path, 5), row(tmp_path, 6)]
    begin = worlds(rows=rows, texts=[[], []])
    assert begin == [("begin 5", 0.0, False, False), ("begin 6", 0.0, False, False)]
    assert worlds(rows=rows, texts=[["a"], ["end"]]) == [
        ("1 a", 1.0, False, False),
        ("1 end", 1.0, True, False),
    ]
    assert worlds(rows=rows[:1], texts=[["a", "cut"]]) == [("2 cut", 2.0, False, True)]
    assert begun(tmp_path) == [5, 6]  # each was begun once


def test_a_world_that_is_lost_is_played_again(tmp_path: Path, counter: str) -> None:
    one, other = load_worlds(counter, None, 0), load_worlds(counter, None, 0)
    rows = [row(tmp_path, 5)]
    for texts in ([], ["a"], ["a", "b"]):
        one(rows=rows, texts=[texts])
    said = ["a", "b", "c"]
    assert one(rows=rows, texts=[said]) == other(rows=rows, texts=[said])
    assert begun(tmp_path) == [5, 5]
    # An earlier place of the same episode, as after a step that was abandoned.
    assert one(rows=rows, texts=[["a", "x"]]) == [("2 x", 2.0, False, False)]


def test_where_others_go_on_a_world_that_is_not_asked_is_forgotten(
    tmp_path: Path, counter: str
) -> None:
    worlds = as_worlds(counter)
    rows = [row(tmp_path, seed) for seed in (1, 2, 3)]
    worlds(rows=rows, texts=[[], [], []])
    worlds(rows=rows[:2], texts=[["a"], ["a"]])
    worlds(rows=[row(tmp_path, 4)], texts=[[]])  # one begins while two are being played
    worlds(rows=rows[:2], texts=[["a", "b"], ["a", "b"]])
    assert begun(tmp_path) == [1, 2, 3, 4]
    worlds(rows=rows, texts=[["a", "b", "c"], ["a", "b", "c"], ["a"]])
    assert begun(tmp_path) == [1, 2, 3, 4, 3]


@pytest.mark.parametrize("text", ["raise", pytest.param("die", marks=pytest.mark.slow), "hang"])
def test_what_fails_once_is_played_again(tmp_path: Path, counter: str, text: str) -> None:
    worlds = load_worlds(counter, None if text == "raise" else 1.0, 2)
    rows = [row(tmp_path, 5), row(tmp_path, 6)]
    worlds(rows=rows, texts=[[], []])
    worlds(rows=rows, texts=[["a"], ["b"]])
    (tmp_path / "note.fail").write_text("once")
    assert worlds(rows=rows, texts=[["a", text], ["b", "c"]]) == [
        (f"2 {text}", 2.0, False, False),
        ("2 c", 2.0, False, False),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise", "environment Counter raised ValueError twice: the die is on its edge (worlds.py"),
        ("die", "environment Counter failed 2 times, at last with ConnectionError: the process of"),
        pytest.param(
            "hang",
            "environment Counter failed 2 times, at last with TimeoutError: Counter did not",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_fails_again_and_again_is_told(
    tmp_path: Path, counter: str, text: str, words: str
) -> None:
    worlds = load_worlds(counter, None if text == "raise" else 1.0, 1)
    rows = [row(tmp_path, 5)]
    (tmp_path / "note.fail").write_text("always")
    with pytest.raises(UserError) as told:
        worlds(rows=rows, texts=[[text]])
    assert str(told.value).startswith(words)


class Wrong:
    def __init__(self, begin: Any = "a", answer: Any = ("b", 1.0, False, False)) -> None:
        self.begin, self.answer = begin, answer

    def reset(self, **row: Any) -> Any:
        return self.begin

    def step(self, text: str) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("world", "words"),
    [
        (Wrong(begin=None), "environment Wrong: reset returned None; return a text."),
        (Wrong(answer=None), "environment Wrong: step returned None; return a text, a finite"),
        (Wrong(answer=("b", 1.0, False)), "environment Wrong: step returned ('b', 1.0, False);"),
        (Wrong(answer=("b", float("nan"), False, False)), "environment Wrong: step returned ('b'"),
        (Wrong(answer=("b", "1", False, False)), "environment Wrong: step returned ('b', '1'"),
        (Wrong(answer=(1, 1.0, False, False)), "environment Wrong: step returned (1, 1.0"),
    ],
)
def test_an_answer_of_another_form_is_refused(world: Wrong, words: str) -> None:
    def make() -> Wrong:
        return world

    make.__name__ = "Wrong"
    with pytest.raises(UserError) as told:
        Worlds(make)(rows=[{"seed": 1}], texts=[["c"]])
    assert str(told.value).startswith(words)


def test_what_is_no_environment_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "none.py"
    file.write_text("class Half:\n    def reset(self): ...\n", encoding="utf-8")
    with pytest.raises(UserError, match="environment Half: give a class that has reset and step"):
        load_worlds(f"{file}:Half", None, 0)
    with pytest.raises(UserError, match="give a class that has reset and step"):
        as_worlds(Wrong())


def test_seeds_of_worlds_are_all_different_and_fixed() -> None:
    seeds = [world_seed(seed, episode) for seed in (0, 1, 2**32 - 1) for episode in range(500)]
    assert len(set(seeds)) == 1500
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert world_seed(7, 11) == world_seed(7, 11)


def test_a_world_in_a_process_has_time_to_be_played_again(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        "import time\n\nclass Slow:\n    def reset(self, **row):\n        return 'a'\n\n"
        "    def step(self, text):\n        time.sleep(0.3)\n"
        "        return text, 0.0, False, False\n",
        encoding="utf-8",
    )
    worlds = load_worlds(f"{file}:Slow", 0.6, 0)
    said = list("abcdef")  # 1.8 seconds
    assert worlds(rows=[{"seed": 1}], texts=[said]) == [("f", 0.0, False, False)]
