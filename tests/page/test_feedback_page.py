"""People at the feedback page: real keys and a real mouse in Chromium, a real server, its store."""

import contextlib
import json
import random
import re
import shutil
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.feedback.rows import current
from recipes.lib.feedback.store import Store
from recipes.lib.feedback.tables import ANSWERS, CLAIMS, ITEMS, JOBS
from tests.helpers.devtools import Browser
from tests.helpers.feedback_server import Server, item
from tests.helpers.small_disk import NoMountError, small_disk

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# No name resolves, and what needs none but this machine goes to a port that nobody listens on.
OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--proxy-server=127.0.0.1:9"]
OFFLINE += ["--proxy-bypass-list=127.0.0.1"]
SHIFT, CONTROL = 8, 2

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    profile = tmp_path_factory.mktemp("profile")
    made = Browser([str(CHROMIUM), *FLAGS, *OFFLINE, f"--user-data-dir={profile}"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("project") / "feedback.db")
    yield made
    made.kill()


@pytest.fixture
def store(server: Server, browser: Browser) -> Store:
    """The server's, empty, and nobody at the page."""
    browser.open("about:blank")
    opened = Store(server.database)
    with opened.engine.begin() as connection:
        for table in (JOBS, ITEMS, CLAIMS, ANSWERS):
            connection.execute(table.delete())
    return opened


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


def values(store: Store) -> list[tuple[str, Any]]:
    return [(row["kind"], row["value"]) for row in store.rows()]


def place(content: str) -> int:
    """Where a completion of `item` stands in the store."""
    return ["first", "second", "third", "fourth"].index(content.split()[0])


KEYS = {"A": [("1", 0), ("ArrowLeft", 0)], "B": [("2", 0), ("ArrowRight", 0)]}


def test_a_pair_by_keys_and_by_mouse_tells_which_text_was_better(
    browser: Browser, server: Server, store: Store
) -> None:
    sit_down(browser, server, store, *map(item, range(12)))
    wanted = []
    for side, key, modifiers in [
        (0, "1", 0), (1, "2", 0), (0, "ArrowLeft", 0), (1, "ArrowRight", 0), (0, "1", SHIFT),
        (1, "ArrowRight", SHIFT), (None, "0", 0), (None, "=", 0), (0, "A better", None),
        (1, "B much better", None), (None, "Tie", None), (None, "Cannot judge", None),
    ]:  # fmt: skip
        browser.wait_for(ASKED)
        texts, number = shown(browser), int(prompt(browser).split()[1])
        strength = 3 if modifiers == SHIFT or "much" in key else None
        value = None if side is None else place(texts[side])
        wanted.append((number, value, strength, [place(text) for text in texts]))
        if modifiers is None:
            click(browser, key)
        else:
            press(browser, key, modifiers=modifiers)
    wait_until_saved(browser)
    rows = list(store.rows())
    got = [(int(r["item"][1:]), r["value"], r["strength"], r["shown_order"]) for r in rows]
    assert got == wanted
    assert {tuple(order) for *_, order in got} == {(0, 1), (1, 0)}  # drawn
    assert [row["weight"] for row in rows] == [1.0] * 11 + [0.0]
    assert all(0 < row["seconds"] < 60 for row in rows)
    assert {(row["annotator"], row["source"]) for row in rows} == {("anna", "human")}
    browser.wait_for("document.getElementById('question').innerText === 'All done, thank you!'")


STEPS = [("3", "C"), ("2", "B"), ("Backspace", "Back"), ("1", "A"), ("=", "Tie with A")]
STEPS += [("4", "D"), ("2", "B"), ("Enter", "Save")]


def test_a_ranking_with_ties_by_keys_and_by_mouse(
    browser: Browser, server: Server, store: Store
) -> None:
    contents = ["first", "second", "third", "fourth"]
    sit_down(browser, server, store, item(1, "rank", contents), item(2, "rank", contents))
    wanted = []
    for how in ("keys", "mouse"):
        browser.wait_for(ASKED)
        texts = shown(browser)
        # C is best, A and D share the second place, B is last; a slip is taken back.
        for key, words in STEPS:
            press(browser, key) if how == "keys" else click(browser, words)
        ranks = [0] * 4
        for side, rank in zip(texts, (2, 3, 1, 2), strict=True):
            ranks[place(side)] = rank
        wanted.append(("rank", ranks))
    wait_until_saved(browser)
    assert values(store) == wanted


def test_ratings_of_every_aspect_and_thumbs(browser: Browser, server: Server, store: Store) -> None:
    aspects = {"aspects": ["kind", "true"]}
    both, one = item(1, "rating", **aspects), item(2, "rating", ["only"])
    thumbs = [item(3, "thumb", ["only"]), item(4, "thumb", ["only"])]
    sit_down(browser, server, store, both, one, *thumbs)
    texts = shown(browser)
    for key in ("1", "2", "Backspace", "4", "5"):
        press(browser, key)
    click(browser, "3")
    assert "1" in browser.ask("document.querySelector('article b').textContent")
    press(browser, "Enter")
    press(browser, "5")
    press(browser, "1")
    click(browser, "\U0001f44e Bad")
    wait_until_saved(browser)
    rows = list(store.rows())
    assert [(row["completions"][0]["content"], row["aspect"], row["value"]) for row in rows] == [
        (texts[0], "kind", 1),
        (texts[0], "true", 4),
        (texts[1], "kind", 5),
        (texts[1], "true", 3),
        ("only", "overall", 5),
        ("only", "overall", True),
        ("only", "overall", False),
    ]


def test_what_somebody_writes_goes_along_with_the_answer(
    browser: Browser, server: Server, store: Store
) -> None:
    kinds = [item(2, "edit", ["Its bad."]), item(3, "text", [])]
    sit_down(browser, server, store, item(1), *kinds)
    texts = shown(browser)
    for key, written in (("e", None), ("2", " and more"), ("w", "My 1 own"), ("r", "because x")):
        press(browser, key)
        if written:
            browser.write(written)
            press(browser, "1")  # is no answer while one writes
            press(browser, "Enter", modifiers=CONTROL)
    hint = browser.ask("document.getElementById('hint').innerText")
    assert hint == "Goes along: edit of B, own answer, reason."
    press(browser, "1")
    browser.wait_for("document.querySelector('textarea')?.value === 'Its bad.'")
    browser.ask("document.querySelector('textarea').setSelectionRange(2, 2)")
    browser.write("'")
    click(browser, "Keep")
    browser.wait_for("document.body.className.startsWith('text')")
    browser.write("Mine, \u732b")
    click(browser, "Keep")
    wait_until_saved(browser)
    assert values(store) == [
        ("pair", place(texts[0])),
        ("edit", f"{texts[1]} and more"),
        ("text", "My 1 own"),
        ("edit", "It's bad."),
        ("text", "Mine, \u732b"),
    ]
    first, *_ = rows = list(store.rows())
    assert [row["reason"] for row in rows] == ["because x"] * 3 + [None] * 2
    assert rows[1]["completions"][0]["content"] == texts[1]
    assert first["shown_order"] == [place(text) for text in texts]


def test_undo_brings_the_item_back_and_the_second_answer_counts(
    browser: Browser, server: Server, store: Store
) -> None:
    sit_down(browser, server, store, item(1), item(2))
    texts = shown(browser)
    press(browser, "1")
    assert prompt(browser) == "Prompt 2"
    press(browser, "u")
    browser.wait_for("document.querySelector('#prompt .text').textContent === 'Prompt 1'")
    assert shown(browser) == texts
    press(browser, "2")
    press(browser, "0")
    wait_until_saved(browser)
    rows = list(store.rows())
    assert [(row["item"], row["value"]) for row in current(rows)] == [
        ("i1", place(texts[1])),
        ("i2", None),
    ]
    assert len(rows) == 4


def test_other_views_of_the_texts_and_the_help(
    browser: Browser, server: Server, store: Store
) -> None:
    sit_down(browser, server, store, item(1, contents=["a **red** cat", "a **blue** cat"]))
    texts = shown(browser)
    press(browser, "d")
    browser.wait_for("document.querySelectorAll('mark').length === 2")
    marks = browser.ask("[...document.querySelectorAll('mark')].map(e => e.innerText)")
    assert marks == [text.split("**")[1] for text in texts]
    press(browser, "m")
    browser.wait_for("document.querySelectorAll('.markdown strong').length === 2")
    press(browser, "m")
    browser.wait_for("!document.querySelector('.markdown')")
    assert shown(browser) == texts
    press(browser, "?")
    help_text = browser.ask("document.getElementById('help').innerText")
    assert re.search(r"1\s+\u2190\s+A better", help_text)
    press(browser, "1")  # is no answer while the help is open
    browser.ask("document.getElementById('help').close()")
    assert list(store.rows()) == []


def test_the_page_waits_for_completions_by_itself(
    browser: Browser, server: Server, store: Store
) -> None:
    store.add_jobs([{"item": "i1"}])
    browser.open(server.address)
    browser.wait_for("document.getElementById('question').innerText.startsWith('Waiting')")
    store.add_items([item(1)])
    browser.wait_for("document.querySelector('#prompt .text')?.textContent === 'Prompt 1'")
    press(browser, "1")
    browser.wait_for("document.getElementById('question').innerText === 'All done, thank you!'")


LONG = "word " * 10_000  # 50 kB
ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645"


def test_a_phone_never_scrolls_sideways_and_every_target_fits_a_thumb(
    browser: Browser, server: Server, store: Store
) -> None:
    wide = ["x" * 3_000, LONG]
    sit_down(
        browser, server, store, item(1, contents=wide), item(2, "rank", ["a"] * 9),
        item(3, "rating", aspects=["kindness of the words"] * 3), item(4, "edit", ["a"]), width=390,
    )  # fmt: skip
    for _ in range(4):
        for key in ("d", "m"):
            browser.press(key)
            browser.wait_for("document.querySelector('mark, .markdown, textarea, #tools')")
        assert browser.ask("document.documentElement.scrollWidth") == 390
        assert browser.ask("document.documentElement.scrollHeight <= innerHeight")
        small = browser.ask(
            "[...document.querySelectorAll('button')].map(e => e.getBoundingClientRect())"
            ".filter(b => b.width && (b.width < 44 || b.height < 44)).length"
        )
        assert small == 0
        below = browser.ask(
            "[...document.querySelectorAll('#answers button')].every(e => {"
            "const b = e.getBoundingClientRect(); return b.left >= 0 && b.right <= 390; })"
        )
        assert below
        click(browser, "Cannot judge")


def test_long_and_right_to_left_texts(browser: Browser, server: Server, store: Store) -> None:
    sit_down(browser, server, store, item(1, contents=[LONG, f"{ARABIC}\nEnglish"]))
    assert sorted(map(len, shown(browser))) == [len(f"{ARABIC}\nEnglish"), len(LONG)]
    long, arabic = sorted(range(2), key=lambda side: -len(shown(browser)[side]))
    box = f"document.querySelectorAll('#completions .box')[{long}]"
    assert browser.ask(f"{box}.scrollHeight > 3 * {box}.clientHeight")
    ends = browser.ask(
        f"(() => {{ const box = document.querySelectorAll('#completions .text')[{arabic}];"
        "const range = document.createRange(), lines = box.firstChild;"
        f"range.setStart(lines, 0); range.setEnd(lines, {len(ARABIC)});"
        "const b = box.getBoundingClientRect(), r = range.getBoundingClientRect();"
        "return [r.left - b.left, b.right - r.right]; })()"
    )
    assert ends[1] < 2 < 50 < ends[0]  # the line ends at the right


def test_screen_readers_have_names_for_everything(
    browser: Browser, server: Server, store: Store
) -> None:
    sit_down(browser, server, store, item(1))
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    browser.call("Accessibility.disable")
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            role = node["role"]["value"]
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert {"A", "B", "Which answer is better?", "Prompt"} <= {*named["heading"]}
    assert {"Edit A", "Edit B", "A better", "Tie", "B better", "Undo"} <= {*named["button"]}
    assert all(named["button"])
    assert browser.ask("document.getElementById('live').ariaLive || 'polite'") == "polite"


def test_the_page_is_small_and_asks_nobody_else(
    browser: Browser, server: Server, store: Store
) -> None:
    browser.open("about:blank")
    browser.call("Network.enable")
    browser.events.clear()
    sit_down(browser, server, store, item(1))
    time.sleep(0.5)
    browser.call("Network.disable")
    sent = [e["params"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent if one["request"]["url"] != "data:,"]
    loaded = [
        e["params"]["encodedDataLength"]
        for e in browser.events
        if e.get("method") == "Network.loadingFinished"
    ]
    assert all(url.startswith(server.address) for url in urls)
    assert len(urls) <= 8
    assert sum(loaded) < 15_000
    folder = Path("recipes/lib/annotation")
    assert sum((folder / url.rpartition("/")[2]).stat().st_size for url in urls[1:4]) < 22_000


# Hostile texts

OWN = "document.title='owned';window.owned=1"
HTML = [
    f"<script>{OWN}</script>", f"<img src=x onerror=\"{OWN}\">", f"<svg onload=\"{OWN}\">",
    f"<svg><script>{OWN}</script></svg>", f"<iframe srcdoc=\"<script>parent.{OWN}</script>\">",
    f"<body onload=\"{OWN}\">", f"<details open ontoggle=\"{OWN}\">x</details>",
    f"<math><mtext></mtext><mglyph><style><img src=x onerror=\"{OWN}\">",
    f"<a href=\"javascript:{OWN}\">x</a>", f"<form action=\"javascript:{OWN}\"><button>x</button>",
    "<img src=http://evil.example/p.png>", "<link rel=stylesheet href=http://evil.example/c.css>",
    "<style>@import 'http://evil.example/c.css';*{background:url(http://evil.example/b)}</style>",
    "<p style=\"background:url(http://evil.example/b)\">x</p>", "<base href=http://evil.example/>",
    "<meta http-equiv=refresh content='0;url=http://evil.example/'>",
    "<video src=http://evil.example/v autoplay></video>", "<object data=http://evil.example/o>",
    "<input onfocus=1 autofocus>", f"<template><script>{OWN}</script></template>",
    f"</textarea></div></article><script>{OWN}</script>", f"<!--><script>{OWN}</script>-->",
    f"<noscript><p title=\"</noscript><img src=x onerror={OWN}>\">",
    "<p style=\"position:fixed;inset:0;\\62 ackground:red\">x</p>",
    f"{{{{constructor.constructor('{OWN}')()}}}}",
]  # fmt: skip
MARKDOWN = [
    "![x](http://evil.example/p.png)", f"[x](javascript:{OWN})", "<http://evil.example>",
    f"[x](data:text/html,<script>{OWN}</script>)", "![x][r]\n\n[r]: http://evil.example/p.png",
    "[x](http://evil.example 'a\" onmouseover=\"alert(1)')",
    f"```\"><script>{OWN}</script>\nx\n```",
    f"| a |\n|---|\n| <img src=x onerror={OWN}> |", "![x](data:image/svg+xml;base64,PHN2Zy8+)",
    f"`<script>{OWN}</script>`", f"&lt;script&gt;{OWN}&lt;/script&gt;", "&#8238;gpj&#8203;.exe",
    "> " * 500 + "deep", "*" * 5_000, "[" * 5_000, "<" * 3_000 + "b" * 3_000,
    f"<javascript:{OWN}>", f"[x]: <javascript:{OWN}>\n\n[x]", "http://evil.example/auto", "\\<b>",
]  # fmt: skip
CHARACTERS = [
    "\x1b[31mred\x1b[0m", "\x1b]8;;http://evil.example\x07x\x1b]8;;\x07", "\x1b[2J\x1b[H",
    "\u202etxt.exe", "\u2066\u202e}\u2069", "a\u200bb\u200cc\u200dd", "\ufeffx", "x\u00ady",
    "\u2028\u2029", "\x00nul", "\x08\x08\x08back", "over\rwritten", "\U000e0041\U000e0042",
    "\u061c\u200f\u200e", "\ufff9a\ufffab\ufffb", "Z\u0351\u036b" * 300, "\u115f\u3164\uffa0",
    "a" * 60_000, "\u732b" * 20_000, "\n" * 5_000,
]  # fmt: skip


def hostile_texts() -> list[str]:
    """200 texts: each by itself, and wrapped or mixed."""
    rng = random.Random(17)
    texts = [*HTML, *MARKDOWN, *CHARACTERS]
    texts += [f"# Title\n\n- **{text}**\n" for text in HTML + MARKDOWN]
    while len(texts) < 200:
        texts.append("\u202e ".join(rng.sample(HTML + MARKDOWN + CHARACTERS[:17], 3)))
    return texts


FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Cs")
FORBIDDEN = "SCRIPT IMG SVG IFRAME A FORM LINK STYLE BASE META VIDEO OBJECT INPUT MATH TEMPLATE"


def is_invisible(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in FILLERS or unicodedata.category(character) in HIDDEN


def test_hostile_texts_run_nothing_ask_for_nothing_and_hide_nothing(tmp_path: Path) -> None:
    log, texts = tmp_path / "net.json", hostile_texts()
    server = Server(tmp_path / "feedback.db")
    store = Store(server.database)
    flags = [*FLAGS, *OFFLINE, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"]
    browser = Browser([str(CHROMIUM), *flags])
    browser.call("Page.enable")
    groups = [texts[start : start + 20] for start in range(0, 200, 20)]
    asked = [item(n, "rank", ["", *group], prompt=group[0] + ".") for n, group in enumerate(groups)]
    sit_down(browser, server, store, *asked)
    boxes = "[...document.querySelectorAll('#completions .text, #completions .markdown')]"
    for group in groups:
        browser.wait_for(ASKED)
        raw = browser.ask(f"{boxes}.map(e => e.textContent)")
        plain = {text: text for text in group if not any(map(is_invisible, text))}
        assert {*plain} <= {*raw}
        assert not any(is_invisible(c) for text in raw for c in text.replace("\r\n", "\n"))
        for key, ready in (("d", "#completions mark"), ("m", "#completions .markdown")):
            browser.press(key)
            browser.wait_for(f"document.querySelector({json.dumps(ready)})")
            seen = browser.ask(f"{boxes}.map(e => e.textContent).join('')")
            assert not any(map(is_invisible, seen))
            inside = f"{boxes}.flatMap(e => [...e.querySelectorAll('*')])"
            odd = browser.ask(
                f"{inside}.map(e => [e.tagName, ...[...e.attributes].map(a => a.name)])"
            )
            assert not {tag for tag, *_ in odd} & {*FORBIDDEN.split()}
            assert {name for _, *names in odd for name in names} <= {"class"}  # of the escapes
        assert browser.ask("[document.title, typeof owned, location.href]") == [
            "Feedback",
            "undefined",
            server.address,
        ]
        press(browser, "x")
    wait_until_saved(browser)
    dialogs = [e for e in browser.events if e.get("method") == "Page.javascriptDialogOpening"]
    assert dialogs == []
    assert len(list(store.rows())) == len(groups)
    browser.close()
    server.kill()
    assert "evil.example" not in log.read_text()


# Nothing is lost


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
    browser = Browser([str(CHROMIUM), *FLAGS, *OFFLINE, f"--user-data-dir={tmp_path / 'profile'}"])
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
