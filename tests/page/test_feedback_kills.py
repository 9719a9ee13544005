"""Nothing that was answered is lost: kills, closed tabs, a full disk, several people."""

import contextlib
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.feedback.rows import current
from recipes.lib.feedback.store import Store
from tests.helpers.devtools import Browser
from tests.helpers.feedback_page import (
    CHROMIUM,
    COMMAND,
    place,
    press,
    prompt,
    sit_down,
    wait_until_saved,
)
from tests.helpers.feedback_server import Server, item
from tests.helpers.small_disk import NoMountError, small_disk

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


class Person:
    """Somebody in one tab, who notes what they answered and what the page showed as saved."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.answered: dict[str, Any] = {}

    def __enter__(self) -> Browser:
        self.browser.session = self.session
        return self.browser

    def __exit__(self, *_: object) -> None:
        """The session stays until another person's turn."""

    def answer(self, choice: str) -> bool:
        """Answer by a key if something is asked."""
        with self as browser:
            asked = browser.ask(
                "document.body.className.startsWith('pair') && "
                "[...document.querySelectorAll('.text')].map(e => e.innerText)"
            )
            if not asked:
                return False
            browser.press(choice)
            value = None if choice == "0" else place(asked[int(choice)])
            assert asked[0] not in self.answered, "asked twice"
            self.answered[asked[0]] = value
            return True

    def is_saved(self) -> bool:
        with self as browser:
            return browser.ask("document.getElementById('saved').textContent === '\u2713 saved'")


def check_nothing_lost(store: Store, people: dict[str, list[Person]]) -> None:
    """All that anybody answered is in the store, once, with the value that they chose."""
    rows = current(store.rows())
    for name, tabs in people.items():
        got = [(row["prompt"], row["value"]) for row in rows if row["annotator"] == name]
        assert len(got) == len({text for text, _ in got})
        assert dict(got) == {k: v for tab in tabs for k, v in tab.answered.items()}
    assert len(rows) == sum(len(tab.answered) for tabs in people.values() for tab in tabs)


def test_two_tabs_and_three_kills_lose_nothing(
    browser: Browser, server: Server, store: Store
) -> None:
    store.add_items(map(item, range(200)))
    tabs = [Person(browser, browser.session), Person(browser, browser.add_tab())]
    for tab in tabs:
        with tab:
            browser.open(server.address)
            browser.wait_for("document.querySelector('#prompt .text')")
    rng, told = random.Random(3), []
    for _ in range(3):
        for _ in range(6):
            for tab in tabs:
                while not tab.answer(rng.choice("012")):
                    time.sleep(0.01)
        server.kill()
        for tab in tabs:
            tab.answer("1")
            if not tab.is_saved():
                with tab:
                    words = "banner.textContent.startsWith('Not saved yet (') && banner.textContent"
                    told.append(browser.wait_for(words))
        server.start()
        for tab in tabs:
            with tab:
                wait_until_saved(browser)
        check_nothing_lost(store, {"anna": tabs})
    assert len(told) > 2
    assert sum(len(tab.answered) for tab in tabs) >= 36
    with tabs[1]:
        browser.close_tab()
    browser.session = tabs[0].session


def test_what_a_closed_tab_had_not_saved_comes_from_the_next_one(
    browser: Browser, server: Server, store: Store
) -> None:
    store.add_items(map(item, range(9)))
    first, second = browser.session, Person(browser, browser.add_tab())
    with second:
        browser.open(server.address)
        browser.wait_for("document.querySelector('#prompt .text')")
    server.kill()
    second.answer("2")
    with second:
        browser.close_tab()
    server.start()
    browser.session = first
    browser.open(server.address)
    browser.wait_for("document.querySelector('#prompt .text')")
    end = time.monotonic() + 20
    while not list(store.rows()) and time.monotonic() < end:
        time.sleep(0.1)
    check_nothing_lost(store, {"anna": [second]})
    # and the new tab has what the closed one had in hand next, not its answered item
    assert prompt(browser) == "Prompt 1"


def test_on_a_full_disk_the_page_says_not_saved_and_keeps_it(
    browser: Browser, tmp_path: Path
) -> None:
    try:
        with small_disk(tmp_path) as disk:
            server = Server(disk / "feedback.db")
            store = Store(server.database)
            sit_down(browser, server, store, *map(item, range(20)))
            person = Person(browser, browser.session)
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            for _ in range(2):
                person.answer("1")
            words = browser.wait_for("!banner.hidden && banner.textContent")
            assert re.match(
                r"Not saved yet \([12]\)\. The server cannot save: .*(full|disk)", words
            )
            assert not person.is_saved()
            filler.unlink()
            wait_until_saved(browser)
            check_nothing_lost(store, {"anna": [person]})
            store.engine.dispose()
            server.kill()
    except NoMountError:
        pytest.skip("a file system cannot be mounted here")


def test_an_answer_that_the_server_refuses_is_told_and_stays_told(
    browser: Browser, server: Server, store: Store
) -> None:
    sit_down(browser, server, store, item(1), item(2))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE claims SET annotator = 'ben' WHERE item = 'i1'")
    browser.press("1")
    press(browser, "1")
    wait_until_saved(browser)
    told = browser.ask("!banner.hidden && banner.textContent")
    assert re.fullmatch(r" An answer was refused: claim=\S+: nothing of that .* anna\.", told)
    assert [row["item"] for row in store.rows()] == ["i2"]


@pytest.mark.slow
def test_eight_people_and_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path / "feedback.db", annotator="")
    store = Store(server.database)
    store.add_items(map(item, range(2_000)))
    browser = Browser([*COMMAND, f"--user-data-dir={tmp_path / 'profile'}"])
    people: dict[str, list[Person]] = {}
    open_tabs: list[tuple[str, Person]] = []
    contexts: dict[str, str] = {}

    def open_tab(name: str, address: str) -> None:
        person = Person(browser, browser.add_tab(browserContextId=contexts[name]))
        people.setdefault(name, []).append(person)
        open_tabs.append((name, person))
        with person:
            browser.call("Page.navigate", url=address)
            browser.wait_for("document.querySelector('#prompt .text')")

    browser.session = ""
    for number in range(8):
        name = f"person {number}"
        browser.session = ""
        contexts[name] = browser.call("Target.createBrowserContext")["browserContextId"]
        open_tab(name, f"{server.address}a/{store.give_secret(name)}")
    open_tab("person 0", server.address)  # in two tabs
    rng = random.Random(17)
    kills = 0
    while min(sum(len(t.answered) for t in tabs) for tabs in people.values()) < 100:
        for _, person in open_tabs:
            person.answer(rng.choice("012"))
        if kills < 20 and rng.random() < 0.25:
            kills += 1
            server.kill()
            for _, person in rng.sample(open_tabs, 4):
                person.answer(rng.choice("12"))
            if rng.random() < 0.5:  # a tab is closed with what it has, and opened again
                name, person = open_tabs.pop(rng.randrange(len(open_tabs)))
                with person:
                    browser.close_tab()
                server.start()
                open_tab(name, server.address)
            else:
                server.start()
    assert kills == 20
    for _, person in open_tabs:
        with person:
            wait_until_saved(browser)
    time.sleep(8)  # what closed tabs left is taken up by those of the same person
    for _, person in open_tabs:
        with person:
            wait_until_saved(browser)
    check_nothing_lost(store, people)
    assert sum(len(tab.answered) for tabs in people.values() for tab in tabs) >= 800
    browser.close()
    server.kill()
