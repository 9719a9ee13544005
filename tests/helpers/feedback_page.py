"""Sitting at the feedback page in a Chromium that reaches nothing but this machine."""

import json
import shutil
from typing import Any

from recipes.lib.feedback.store import Store
from tests.helpers.devtools import Browser
from tests.helpers.feedback_server import Server

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# No name resolves, and what needs none but this machine goes to a port that nobody listens on.
OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--proxy-server=127.0.0.1:9"]
OFFLINE += ["--proxy-bypass-list=127.0.0.1"]
COMMAND = [str(CHROMIUM), *FLAGS, *OFFLINE]


ASKED = "!['', 'empty'].includes(document.body.className)"


def sit_down(browser: Browser, server: Server, store: Store, *items: Any, **window: Any) -> None:
    store.add_items(items)
    browser.open(server.address, **window)
    browser.wait_for("document.querySelector('#prompt .text')")


def shown(browser: Browser) -> list[str]:
    """The completions in the order of the page."""
    return browser.ask("[...document.querySelectorAll('#completions .text')].map(e => e.innerText)")


def prompt(browser: Browser) -> str:
    return browser.ask("document.querySelector('#prompt .text').textContent")


def wait_until_saved(browser: Browser) -> None:
    browser.wait_for("document.getElementById('saved').textContent === '\u2713 saved'")


def click(browser: Browser, words: str) -> None:
    buttons = "[...document.querySelectorAll('button')].filter(e => e.getClientRects().length)"
    button = f"{buttons}.find(e => e.innerText.startsWith({json.dumps(words)}))"
    browser.wait_for(button)
    browser.point(button, click=True)


def press(browser: Browser, key: str, modifiers: int = 0) -> None:
    """Press a key as soon as there is something to answer."""
    browser.wait_for(ASKED)
    browser.press(key, modifiers=modifiers)


def place(content: str) -> int:
    """Where a completion of `item` stands in the store."""
    return ["first", "second", "third", "fourth"].index(content.split()[0])
