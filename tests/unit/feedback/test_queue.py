import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.feedback import queue
from recipes.lib.feedback.queue import fill, make_jobs, read_items, with_repeats
from recipes.lib.feedback.store import Store

SETTINGS = {"seed": 1, "overlap": 0.0, "repeat": 0.0}


def script(path: Path, rows: Sequence[Any], **more: Any) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SimpleNamespace(items=str(path), **{"kinds": ["pair"], "aspects": ["overall"]} | more)


def numbered(name: str, prompts: Sequence[Any], seed: int) -> list[str]:
    """A sampler whose texts say who wrote them, to what, and in which draw."""
    return [f"{name} {prompt} {seed} {place}" for place, prompt in enumerate(prompts)]


def silent(name: str, messages: Any, episode: int, show: Callable[[str], None]) -> str:
    raise AssertionError("nobody talks")


def filled(store: Store, sample: Any = numbered, talk: Any = silent, **more: Any) -> int:
    store.settings = SETTINGS | more
    return fill(store, sample, talk, lambda: True, waits=False)


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
        ({"completions": ["a"]}, "line 1: "),
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
    made: list[Any] = list(with_repeats(items, overlap=0.2, repeat=0.1, seed=1))
    again = [one for one in made if one["id"].endswith("-again")]
    assert 60 < len(again) < 140
    assert made[-len(again) :] == again
    assert 150 < sum(one["num_wanted"] == 2 for one in made) < 250
    assert made == list(with_repeats(items, overlap=0.2, repeat=0.1, seed=1))


def test_models_and_kinds_take_turns() -> None:
    jobs = list(make_jobs("abcd", ["sft", "ppo"], ["pair", "thumb"], ["overall"], 4, 1))
    assert [job["kind"] for job in jobs] == ["pair", "thumb", "pair", "thumb"]
    assert [job["models"] for job in jobs] == [["sft", "ppo"], ["ppo"], ["sft", "ppo"], ["ppo"]]
    assert len({job["item"] for job in jobs}) == 4
    ranks = make_jobs("a", ["sft"], ["rank"], ["overall"], 4, 1)
    assert next(ranks)["models"] == ["sft"] * 4
    assert next(make_jobs("a", [], ["text"], ["overall"], 4, 1))["models"] == []


def test_each_completion_is_of_the_model_that_its_item_names(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    store.add_jobs(make_jobs(map(str, range(20)), ["sft", "ppo"], ["pair"], ["overall"], 2, 1))
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
    store.add_jobs(make_jobs(["often", "never", "empty"], ["m"], ["pair"], ["overall"], 2, 1))
    draws: Counter[str] = Counter()

    def sample(name: str, prompts: Sequence[str], seed: int) -> list[str]:
        draws.update(set(prompts))
        said = {"never": ["same", "same"], "empty": ["", "x"], "often": ["a", f"{'b' * seed}"[:9]]}
        said["often"] = ["a", "a" if draws["often"] < 2 else "b"]
        places = {prompt: itertools.cycle(texts) for prompt, texts in said.items()}
        return [next(places[prompt]) for prompt in prompts]

    assert filled(store, sample) == 1
    assert [item["prompt"] for item in store.items()] == ["often"]
    assert draws == {"often": 2, "never": queue.NUM_TRIES, "empty": queue.NUM_TRIES}
    assert store.counts()["waiting"] == 0


def test_a_prompt_that_is_too_long_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "feedback.db")
    store.add_jobs(make_jobs(["one", "long", "two"], ["m"], ["pair"], ["overall"], 2, 1))

    def sample(name: str, prompts: Sequence[str], seed: int) -> list[str]:
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
