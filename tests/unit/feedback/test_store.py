import itertools
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from recipes.lib.errors import UserError
from recipes.lib.feedback import store as module
from recipes.lib.feedback import tables
from recipes.lib.feedback.rows import current, make_row
from recipes.lib.feedback.store import Asked, Store

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server of its own, on a socket."""
    if not BINARIES:
        pytest.skip("postgresql is not installed")
    if os.getuid() != 0:
        pytest.skip("only the superuser can become another user")
    place = Path("/tmp") / f"postgresql-{os.getpid()}"  # a socket's path is short
    place.mkdir()
    shutil.chown(place, "postgres")

    def run(*words: str) -> None:
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words]
        subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL)

    run(str(BINARIES[-1] / "initdb"), "-D", f"{place}/data", "--auth=trust", "--no-sync")
    started = ["-o", f"-k {place} -c listen_addresses=''", "-l", f"{place}/log", "-w", "start"]
    run(str(BINARIES[-1] / "pg_ctl"), "-D", f"{place}/data", *started)
    yield f"postgresql://postgres@/postgres?host={place}"
    run(str(BINARIES[-1] / "pg_ctl"), "-D", f"{place}/data", "-m", "immediate", "stop")
    shutil.rmtree(place)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        yield Store(tmp_path / "feedback.db")
        return
    url = request.getfixturevalue("postgresql")
    opened = Store(url)
    yield opened
    tables.TABLES.drop_all(opened.engine)
    opened.engine.dispose()


def item(number: int, **more: Any) -> Any:
    sides = [{"content": f"{side} {number}", "run": "runs/sft"} for side in ("left", "right")]
    return {"id": f"i{number}", "prompt": "tell", "completions": sides, "kind": "pair"} | more


def row(asked: Asked, name: str, value: Any = 0, **more: Any) -> dict[str, Any]:
    keys = {"kind": "pair", "source": "human", "id": f"{asked['claim']}-0"} | more
    return make_row(asked["item"], annotator=name, value=value, **keys)


def give(store: Store, name: str, **more: Any) -> str:
    asked = store.claim(name, 1)[0]
    assert store.answer(asked["claim"], name, [row(asked, name, **more)])
    return asked["item"]["id"]


def test_each_item_is_asked_of_as_many_people_as_it_wants(store: Store) -> None:
    store.add_items([item(1), item(2, num_wanted=2), item(1)])
    assert store.counts() == {
        "items": 2,
        "answered": 0,
        "fresh": 2,
        "answers": 0,
        "waiting": 0,
    }
    assert [give(store, "anna"), give(store, "anna")] == ["i1", "i2"]
    assert store.claim("anna", 1) == []
    assert store.progress("anna") == {"answered": 2, "left": 0}
    assert (store.counts()["answered"], store.counts()["answers"]) == (1, 2)
    assert give(store, "ben") == "i2"
    assert store.claim("ben", 1) == store.claim("cleo", 1) == []
    assert [kept["annotator"] for kept in store.rows()] == ["anna", "anna", "ben"]


def test_what_one_holds_is_lent_to_nobody_else_until_its_lease_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_items(map(item, range(3)))
    held = store.claim("anna", 2, holder="tab")
    assert [asked["item"]["id"] for asked in held] == ["i0", "i1"]
    assert [asked["item"]["id"] for asked in store.claim("ben", 3)] == ["i2"]
    assert store.claim("anna", 3, holder="other tab") == []
    # The tab that was loaded again gets what it had, under the same claim and in the same order.
    assert store.claim("anna", 2, [held[0]["claim"]], "tab") == held[1:]
    monkeypatch.setattr(module, "LEASE", -1.0)
    store.claim("anna", 0, [asked["claim"] for asked in held], "tab")
    assert {asked["item"]["id"] for asked in store.claim("cleo", 3)} == {"i0", "i1"}
    # Late is not too late.
    assert store.answer(held[0]["claim"], "anna", [row(held[0], "anna")])


def test_an_answer_counts_once_and_only_of_whom_it_was_asked(store: Store) -> None:
    store.add_items([item(1)])
    asked = store.claim("anna", 1)[0]
    with pytest.raises(UserError, match="nothing of that name was asked of ben"):
        store.answer(asked["claim"], "ben", [row(asked, "ben")])
    assert store.answer(asked["claim"], "anna", [row(asked, "anna")])
    assert not store.answer(asked["claim"], "anna", [row(asked, "anna", 1)])
    assert [kept["value"] for kept in store.rows()] == [0]


def test_an_answer_that_is_taken_back_is_superseded_and_asked_again(store: Store) -> None:
    store.add_items([item(1), item(2)])
    assert store.withdraw("anna") is None
    first = store.claim("anna", 1)[0]
    store.answer(first["claim"], "anna", [row(first, "anna", 1, reason="it rhymes")])
    again = store.withdraw("anna")
    assert again is not None
    assert (again["item"], again["shown_order"]) == (first["item"], first["shown_order"])
    assert again["claim"] != first["claim"]
    assert current(store.rows()) == []
    store.answer(again["claim"], "anna", [row(again, "anna", 0)])
    assert [kept["value"] for kept in current(store.rows())] == [0]
    written, withdrawn, _ = store.rows()
    assert withdrawn["supersedes"] == written["id"]
    assert store.progress("anna") == {"answered": 1, "left": 1}


def test_cannot_judge_leaves_an_item_to_others(store: Store) -> None:
    store.add_items([item(1)])
    give(store, "anna", value=None, weight=0.0)
    assert store.claim("anna", 1) == []
    assert give(store, "ben") == "i1"


def test_the_order_that_is_shown_is_drawn_for_each_person(store: Store) -> None:
    store.add_items(item(number, num_wanted=2) for number in range(200))
    orders = {name: [a["shown_order"] for a in store.claim(name, 200)] for name in ("anna", "ben")}
    for shown in orders.values():
        assert 70 < sum(order == [0, 1] for order in shown) < 130
    assert orders["anna"] != orders["ben"]


def test_eight_people_at_once_are_never_lent_the_same_last_item(store: Store) -> None:
    store.add_items(map(item, range(40)))
    got: list[str] = []

    def work(name: str) -> None:
        while asked := store.claim(name, 1):
            store.answer(asked[0]["claim"], name, [row(asked[0], name)])
            got.append(asked[0]["item"]["id"])

    people = [threading.Thread(target=work, args=(f"p{number}",)) for number in range(8)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert sorted(got) == sorted(f"i{number}" for number in range(40))
    assert len(list(store.rows())) == 40


def test_the_queue_survives_and_replies_come_first_and_alone(store: Store) -> None:
    jobs = [{"item": f"i{number}", "prompt": "tell"} for number in range(3)]
    store.add_jobs(jobs)
    store.add_jobs(jobs)
    store.add_jobs([{"item": "r1", "prompt": "hi"}], annotator="anna")
    assert [job["item"] for job in store.next_jobs(2)] == ["r1"]
    store.tell_job("r1", text="hel")
    store.tell_job("r1", text="hello", state="done")
    done = {"item": "r1", "prompt": "hi", "text": "hello", "state": "done"}
    assert store.job("r1", "anna") == done
    with pytest.raises(UserError, match="ben has asked for no such reply"):
        store.job("r1", "ben")
    assert [job["item"] for job in store.next_jobs(2)] == ["i0", "i1"]
    store.add_items([item(0), item(1)])
    assert [job["item"] for job in store.next_jobs(2)] == ["i2"]
    assert store.counts()["waiting"] == 1


def test_a_secret_is_kept_as_its_hash_and_can_be_ended(store: Store) -> None:
    secret = store.give_secret("anna")
    assert store.by_secret(secret) == "anna"
    assert store.by_secret(secret[:-1]) is None
    if store.file is not None:
        assert secret.encode() not in b"".join(
            path.read_bytes() for path in store.file.parent.iterdir()
        )
    assert store.give_secret("anna") == ""  # a link lasts until it is ended
    with pytest.raises(UserError, match="revoke=anan: nobody of that name"):
        store.revoke("anan")
    store.revoke("anna")
    newer = store.give_secret("anna")
    assert (store.by_secret(secret), store.by_secret(newer)) == (None, "anna")
    store.revoke("anna")
    assert store.by_secret(newer) is None


def test_of_whom_is_forgotten_no_word_is_left(store: Store) -> None:
    store.add_items(map(item, (1, 2, 3)))
    store.add_jobs([{"item": "r1", "prompt": "my secret chat"}], annotator="annabella")
    store.give_secret("annabella")
    for _ in range(3):
        give(store, "annabella", reason="because of my secret")
    store.withdraw("annabella")
    store.add_annotator("ben")
    store.settings = {"overlap": 0.0}
    kept = give(store, "ben") if store.claim("ben", 0) else None
    assert kept is None
    assert store.forget("annabella") == 4
    rows = list(store.rows())
    assert len(rows) == 4
    assert {one["annotator"] for one in rows} == {rows[0]["annotator"]}
    assert current(rows) == []
    assert store.annotators() == ["ben"]
    assert [one["id"] for one in store.items()] == ["i1", "i2", "i3"]
    if store.file is not None:
        content = b"".join(path.read_bytes() for path in store.file.parent.iterdir())
        assert b"secret chat" not in content
        assert b"because of" not in content
        assert b"annabella" not in content


def test_a_newer_database_is_refused_and_an_older_one_kept_before_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "feedback.db"
    Store(path).add_items([item(1)])
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 2)
    monkeypatch.setitem(tables.UPGRADES, 2, ("ALTER TABLE items ADD COLUMN note TEXT",))
    assert [one["id"] for one in Store(path).items()] == ["i1"]
    with sqlite3.connect(path) as now, sqlite3.connect(f"{path}.version-1") as before:
        columns = [
            {name for _, name, *_ in one.execute("PRAGMA table_info(items)")}
            for one in (now, before)
        ]
        assert columns[0] - columns[1] == {"note"}
        assert list(before.execute("SELECT id FROM items")) == [("i1",)]
    assert Store(path).items()
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 1)
    with pytest.raises(UserError, match="has version 2, and this rlhf-recipes knows 1"):
        Store(path)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is a text and not a database " * 99)
    for url in (tmp_path / "no.db", tmp_path / "absent/feedback.db", "mysql+absent://host/name"):
        with pytest.raises(UserError, match="cannot be opened"):
            Store(url)


def test_claims_of_ten_thousand_items_take_an_index(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    store.add_items(map(item, range(3)))
    seen: list[str] = []
    sa.event.listen(
        store.engine, "before_cursor_execute", lambda c, u, text, given, *_: seen.append(text)
    )
    store.claim("anna", 1)
    query = next(text for text in seen if text.startswith("SELECT items.content"))
    with sqlite3.connect(tmp_path / "feedback.db") as one:
        plan = list(one.execute(f"EXPLAIN QUERY PLAN {query}", ["x"] * query.count("?")))
    assert any("items USING INDEX items_open" in " ".join(map(str, line)) for line in plan), plan
    assert not any("USE TEMP B-TREE" in " ".join(map(str, line)) for line in plan), plan


def test_ids_of_many_processes_do_not_meet(store: Store) -> None:
    store.add_items(map(item, range(50)))
    claims = [
        asked["claim"] for asked in itertools.chain(store.claim("a", 25), store.claim("b", 25))
    ]
    assert len(set(claims)) == 50
