import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.feedback import queue, sampling
from recipes.lib.feedback.queue import fill, make_jobs, read_items, with_repeats
from recipes.lib.feedback.rows import make_row
from recipes.lib.feedback.store import Store

SETTINGS = {"seed": 1, "overlap": 0.0, "repeat": 0.0}


def script(path: Path, rows: Sequence[Any], **more: Any) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SimpleNamespace(items=str(path), **{"kinds": ["pair"], "aspects": ["overall"]} | more)


class Idle(Exception):
    """There is nothing left to do."""


def said(texts: Sequence[str]) -> list[Any]:
    return [SimpleNamespace(text=text) for text in texts]


def numbered(name: str, prompts: Sequence[Any], seed: int) -> list[Any]:
    """A sampler whose texts say who wrote them, to what, and in which draw."""
    return said([f"{name} {prompt} {seed} {place}" for place, prompt in enumerate(prompts)])


def silent(name: str, messages: Any, episode: int, show: Callable[[str], None]) -> str:
    raise AssertionError("nobody talks")


def filled(store: Store, sample: Any = numbered, talk: Any = silent, **more: Any) -> int:
    def idle(_: float) -> None:
        raise Idle

    store.settings = SETTINGS | more
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", idle)
        with pytest.raises(Idle):
            fill(store, sample, talk)
    return store.counts()["items"]


def jobs_of(prompts: Sequence[str], names: list[str], kinds: list[str]) -> list[dict[str, Any]]:
    keys = {"names": names, "kinds": kinds, "aspects": ["overall"], "num_completions": 4, "seed": 1}
    return list(make_jobs(prompts, SimpleNamespace(**keys)))


def test_ready_items_are_read_with_their_kind_and_gold(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completions": ["a", {"content": "b", "run": "r"}], "gold": 1},
        {"prompt": [{"role": "user", "content": "p"}], "completions": ["a"], "kind": "thumb"},
        {"prompt": "p", "completions": ["a", "b", "c"], "kind": "rank"},
        {"prompt": "p", "kind": "text"},
    ]
    items: list[Any] = list(read_items(script(tmp_path / "items.jsonl", rows)))
    assert [item["kind"] for item in items] == ["pair", "thumb", "rank", "text"]
    assert [one["run"] for one in items[0]["completions"]] == [None, "r"]
    assert ["gold" in item for item in items] == [True, False, False, False]
    assert len({item["id"] for item in items}) == 4


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"completions": ["a", "b"]}, "line 1: is no item"),
        ({"prompt": 5, "completions": ["a", "b"]}, "line 1: .*prompt=5 must be text or messages"),
        (
            {"prompt": "p", "completions": ["a", {"content": "b", "score": 1}]},
            "line 1: .*completions",
        ),
        ({"prompt": "p", "completions": ["a", "b"], "gold": "A"}, "line 1: .*value='A' must be"),
        ({"prompt": "p", "completions": ["a"]}, "kind=pair has 1 completions; 2 are asked"),
        ({"prompt": "p", "completions": ["a", "b"], "kind": "rank"}, "3 or more are asked"),
        ({"prompt": "p", "completions": ["a", "b"], "kind": "pear"}, "kind is one of pair, rank"),
        ([1], "is no item"),
    ],
)
def test_what_is_no_item_is_told_with_its_line(row: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        list(read_items(script(tmp_path / "items.jsonl", [row])))


def test_shares_of_items_go_to_two_people_or_come_again() -> None:
    items: Any = [{"id": str(number)} for number in range(1000)]
    made: list[Any] = list(with_repeats(items, {"overlap": 0.2, "repeat": 0.1, "seed": 1}))
    again = [one for one in made if one["id"].endswith("-again")]
    assert 60 < len(again) < 140
    assert made[-len(again) :] == again
    assert 150 < sum(one["num_wanted"] == 2 for one in made) < 250
    assert made == list(with_repeats(items, {"overlap": 0.2, "repeat": 0.1, "seed": 1}))


def test_models_and_kinds_take_turns() -> None:
    jobs = jobs_of("abcd", ["sft", "ppo"], ["pair", "thumb"])
    assert [job["kind"] for job in jobs] == ["pair", "thumb", "pair", "thumb"]
    assert [job["models"] for job in jobs] == [["sft", "ppo"], ["ppo"], ["sft", "ppo"], ["ppo"]]
    assert len({job["item"] for job in jobs}) == 4
    assert jobs_of("a", ["sft"], ["rank"])[0]["models"] == ["sft"] * 4
    assert jobs_of("a", [], ["text"])[0]["models"] == []


def test_each_completion_is_of_the_model_that_its_item_names(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    store.add_jobs(jobs_of([str(n) for n in range(20)], ["sft", "ppo"], ["pair"]))
    assert filled(store, overlap=1.0) == 20
    items: list[Any] = list(store.items())
    assert [item["prompt"] for item in items] == [str(number) for number in range(20)]
    for item in items:
        assert Counter(one["run"] for one in item["completions"]) == {"sft": 1, "ppo": 1}
        for one in item["completions"]:
            assert one["content"].startswith(f"{one['run']} {item['prompt']} ")
        assert item["num_wanted"] == 2
    assert store.counts()["waiting"] == 0


def test_equal_completions_are_drawn_again_and_then_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    store.add_jobs(jobs_of(["often", "never", "empty"], ["m"], ["pair"]))
    draws: Counter[str] = Counter()

    def sample(name: str, prompts: Sequence[str], seed: int) -> list[Any]:
        draws.update(set(prompts))
        texts = {"never": ["same", " same"], "empty": ["", "x"]}
        texts["often"] = ["a", "a" if draws["often"] < 2 else "b"]
        places = {prompt: itertools.cycle(two) for prompt, two in texts.items()}
        return said([next(places[prompt]) for prompt in prompts])

    assert filled(store, sample) == 1
    assert [item["prompt"] for item in store.items()] == ["often"]
    assert draws == {"often": 2, "never": sampling.NUM_TRIES, "empty": sampling.NUM_TRIES}
    assert store.counts()["waiting"] == 0


def test_a_prompt_that_is_too_long_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "feedback.db")
    store.add_jobs(jobs_of(["one", "long", "two"], ["m"], ["pair"]))

    def sample(name: str, prompts: Sequence[str], seed: int) -> list[Any]:
        if "long" in prompts:
            raise UserError("the longest prompt has 9 tokens.")
        return numbered(name, prompts, seed)

    assert filled(store, sample) == 2
    assert "a prompt is left out: the longest prompt has 9 tokens." in capsys.readouterr().err


def test_replies_are_written_as_they_come_and_a_full_context_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "feedback.db")
    monkeypatch.setattr(queue, "REPLY_PAUSE", -1.0)
    jobs = [{"item": "a" * 16, "messages": ["hi"], "models": ["m", "n"], "texts": ["", ""]}]
    jobs += [{"item": "b" * 16, "messages": ["long"], "models": ["m"], "texts": [""]}]
    store.add_jobs(jobs, annotator="anna")
    seen = []

    def talk(name: str, messages: Any, episode: int, show: Callable[[str], None]) -> str:
        if messages == ["long"]:
            raise UserError("the model's context is full.")
        for piece in (name, "!"):
            show(piece)
            seen.append(store.job("a" * 16, "anna")["texts"])
        return f"{name}!"

    filled(store, talk=talk)
    assert seen == [["m", ""], ["m!", ""], ["m!", "n"], ["m!", "n!"]]
    done, failed = (store.job(name * 16, "anna") for name in "ab")
    assert (done["state"], done["texts"]) == ("done", ["m!", "n!"])
    assert (failed["state"], failed["error"]) == ("failed", "the model's context is full.")


def test_replies_do_not_wait_for_items_and_64_untouched_items_are_enough(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    store.add_jobs(jobs_of([str(n) for n in range(200)], ["m"], ["pair"]))
    assert 64 <= filled(store, overlap=1.0) < 64 + queue.BATCH
    store.add_jobs(
        [{"item": "a" * 16, "messages": ["hi"], "models": ["m"], "texts": [""]}], annotator="a"
    )
    filled(store, talk=lambda name, messages, episode, show: show("hello"), overlap=1.0)
    assert store.job("a" * 16, "a")["texts"] == ["hello"]
    for asked in store.claim("anna", 99):  # each is still open for somebody else
        store.answer(asked["claim"], "anna", [])
    assert filled(store, overlap=1.0) > 100


def test_a_repeat_is_for_whom_it_repeats(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    sides = [{"content": text, "run": None} for text in "ab"]
    items = [{"id": str(n), "prompt": "p", "completions": sides, "kind": "pair"} for n in range(3)]
    store.add_items(with_repeats(items, {"overlap": 0.0, "repeat": 1.0, "seed": 1}))
    first = store.claim("anna", 9)
    assert [asked["item"]["id"] for asked in first] == ["0", "1", "2"]
    for asked in first[:2]:
        row = make_row(asked["item"], kind="pair", value=0, annotator="anna", source="human")
        store.answer(asked["claim"], "anna", [row])
    assert store.claim("ben", 9) == []
    assert store.progress("ben")["left"] == 1
    assert store.progress("anna")["left"] == 3
    again = store.claim("anna", 9, [first[2]["claim"]])
    assert [asked["item"]["id"] for asked in again] == ["0-again", "1-again"]


def test_a_reply_that_is_a_fault_of_the_program_comes_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    store.settings = SETTINGS
    chat = {"item": "a" * 16, "messages": ["hi"], "models": ["m"], "texts": [""]}
    store.add_jobs([chat], annotator="anna")

    def talk(name: str, messages: Any, episode: int, show: Callable[[str], None]) -> str:
        raise TypeError("no such thing")

    with pytest.raises(TypeError, match="no such thing"):
        fill(store, numbered, talk)
    assert store.job("a" * 16, "anna")["state"] == "failed"
    filled(store)  # goes on with what else there is
