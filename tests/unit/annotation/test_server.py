import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from recipes.lib.annotation.access import Access
from recipes.lib.annotation.server import make_app
from recipes.lib.feedback.rows import current
from recipes.lib.feedback.store import Store
from tests.helpers.feedback_server import item

ADDRESS = "http://localhost:8000"
TAB = {"tab": "t", "holding": [], "number": 1}
SAID = {"role": "assistant", "content": "Hi"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "feedback.db")


@pytest.fixture
def page(store: Store) -> TestClient:
    app = make_app(store, Access(store, "anna"))
    return TestClient(app, ADDRESS, headers={"Origin": ADDRESS})


def ask(page: TestClient, store: Store, asked: Any) -> dict[str, Any]:
    store.add_items([asked])
    return page.post("/next", json=TAB).json()["asked"][0]


def answer(page: TestClient, claim: Any, *answers: Any, **more: Any) -> Any:
    body = TAB | {"claim": claim, "answers": [*answers], "seconds": 2.5, "reason": ""} | more
    return page.post("/answer", content=json.dumps(body))  # halves of characters as escapes


def rating(value: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "rating", "value": value, "completion": 0} | more


def one(kind: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "value": value} | more


PAIR = item(1)
RANK = item(1, "rank", ["a", "b", "c"])
RATING = item(1, "rating", ["a", "b"], aspects=["kind", "true"])
EDIT = item(1, "edit", ["a"])
# What is asked, what is answered, a word of the sentence.
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "an index that is none": (PAIR, [one("pair", 2)], "value=2"),
    "true for an index": (PAIR, [one("pair", True)], "value=True"),
    "strength of 4": (PAIR, [one("pair", 0, strength=4)], "strength=4"),
    "twice": (PAIR, [one("pair", 0), one("pair", 1)], "not what was asked"),
    "another kind": (PAIR, [one("rank", [1, 2])], "not what was asked"),
    "a kind that is none": (PAIR, [one("drop", 0)], "not what was asked"),
    "a kind that is a list": (PAIR, [one(["pair"], 0)], "not what was asked"),
    "more than an answer": (PAIR, [one("pair", 0, annotator="ben")], "answers"),
    "ranks of some": (RANK, [one("rank", [1, 2])], "value=[1, 2]"),
    "ranks without a best": (RANK, [one("rank", [2, 2, 3])], "value=[2, 2, 3]"),
    "a rating of 6": (RATING, [rating(6, aspect="kind")], "1 to 5"),
    "a rating of 1.5": (RATING, [rating(1.5, aspect="kind")], "1 to 5"),
    "an aspect that was not asked": (RATING, [rating(3)], "aspect"),
    "a rating of nothing": (RATING, [rating(3, aspect="kind", completion=2)], "completion"),
    "a rating before the first": (RATING, [rating(3, aspect="kind", completion=-1)], "completion"),
    "an empty edit": (EDIT, [one("edit", " \n", completion=0)], "edit"),
    "an edit that is too long": (EDIT, [one("edit", "x" * 100_001, completion=0)], "100000"),
    "a number for a text": (PAIR, [one("text", 3)], "text"),
    "no list": (PAIR, "pair", "answers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_is_none_is_refused_and_the_item_stays_open(
    page: TestClient, store: Store, name: str
) -> None:
    asked, answers, words = REFUSED[name]
    claim = ask(page, store, asked)["claim"]
    got = (
        answer(page, claim, answers=answers) if answers == "pair" else answer(page, claim, *answers)
    )
    assert got.status_code == 400
    assert words in got.json()["error"]
    assert list(store.rows()) == []
    assert page.post("/next", json=TAB).json()["asked"][0]["claim"] == claim


@pytest.mark.parametrize(
    "change",
    [{"seconds": -1}, {"seconds": True}, {"reason": 5}, {"number": 9}, {"tab": "x" * 65},
     {"holding": ["a"] * 1_001}, {"more": 1}, {"claim": None}],
    ids=str,
)  # fmt: skip
def test_a_request_that_is_not_the_pages_is_refused(
    page: TestClient, store: Store, change: dict[str, Any]
) -> None:
    claim = ask(page, store, PAIR)["claim"]
    got = answer(page, **({"claim": claim, "answers": [one("pair", 0)]} | change))
    assert got.status_code == 400
    assert list(store.rows()) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"[" * 100_000, b'{"text": NaN}', b"\xff"])
def test_what_is_no_json_is_refused(page: TestClient, body: bytes) -> None:
    got = page.post("/markdown", content=body)
    assert got.status_code == 400


def test_one_answer_becomes_rows_of_all_it_says(page: TestClient, store: Store) -> None:
    claim = ask(page, store, RATING)["claim"]
    given = [
        rating(5, aspect="kind"),
        rating(2, aspect="kind", completion=1),
        one("edit", "a!", completion=0),
        one("text", "mine"),
    ]
    assert answer(page, claim, *given, reason="short").json()["saved"] == claim
    rows = list(store.rows())
    assert [(row["kind"], row["value"], row["aspect"]) for row in rows] == [
        ("rating", 5, "kind"),
        ("rating", 2, "kind"),
        ("edit", "a!", "overall"),
        ("text", "mine", "overall"),
    ]
    assert [[c["content"] for c in row["completions"]] for row in rows] == [
        ["a"], ["b"], ["a"], ["a", "b"],
    ]  # fmt: skip
    assert {(row["annotator"], row["reason"], row["seconds"], row["weight"]) for row in rows} == {
        ("anna", "short", 2.5, 1.0)
    }
    again = answer(page, claim, rating(1, aspect="kind"))
    assert again.json()["saved"] == claim  # its acknowledgement was lost
    assert list(store.rows()) == rows


def test_what_cannot_be_judged_is_no_answer_but_told(page: TestClient, store: Store) -> None:
    claim = ask(page, store, RATING)["claim"]
    assert answer(page, claim).json()["saved"] == claim
    rows = list(store.rows())
    assert [(row["value"], row["weight"]) for row in rows] == [(None, 0.0)] * 2
    assert current(rows) == []


def test_edits_of_messages_are_messages(page: TestClient, store: Store) -> None:
    both = [[{"role": "user", "content": "Oh"}, SAID], [SAID]]
    asked = ask(page, store, item(1, "pair", both, prompt=[{"role": "user", "content": "Hello"}]))
    assert asked["prompt"] == [{"role": "user", "parts": ["Hello"]}]
    answer(page, asked["claim"], one("edit", "Ho", completion=0), one("text", "Mine\ud800"))
    edited, written = (row["value"] for row in store.rows())
    assert edited == [{"role": "user", "content": "Oh"}, {"role": "assistant", "content": "Ho"}]
    assert written == [{"role": "assistant", "content": "Mine?"}]


def test_texts_with_halves_of_characters_go_out(page: TestClient, store: Store) -> None:
    asked = ask(page, store, item(1, "pair", ["a\ud83d", "b"]))
    place = asked["shown_order"].index(0)
    assert asked["completions"][place] == [{"role": "", "parts": ["a", "\ud83d", ""]}]
    assert page.post("/markdown", content=r'{"text": "a\ud83d"}').json()["html"] == "<p>a?</p>\n"


def test_an_answer_that_the_disk_does_not_take_is_not_acknowledged(
    page: TestClient, store: Store
) -> None:
    claim = ask(page, store, PAIR)["claim"]
    with store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE answers RENAME TO elsewhere")
    got = answer(page, claim, one("pair", 0))
    assert got.status_code == 503
    assert got.json()["error"] == "The server cannot save: no such table: answers."
