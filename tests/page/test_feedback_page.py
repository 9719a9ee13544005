"""People at the feedback page: real keys and a real mouse in Chromium, a real server, its store."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.feedback.exchange import write_answers
from recipes.lib.feedback.rows import current
from recipes.lib.feedback.store import Store
from recipes.lib.runs.files import read_jsonl
from tests.helpers.devtools import Browser
from tests.helpers.feedback_page import (
    ASKED,
    CHROMIUM,
    click,
    place,
    press,
    prompt,
    shown,
    sit_down,
    wait_until_saved,
)
from tests.helpers.feedback_server import Server, item

SHIFT, CONTROL = 8, 2

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def values(store: Store) -> list[tuple[str, Any]]:
    return [(row["kind"], row["value"]) for row in store.rows()]


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
    press(browser, "1")
    browser.wait_for("document.getElementById('question').innerText === 'All done, thank you!'")
    click(browser, "Undo")
    press(browser, "0")
    wait_until_saved(browser)
    rows = list(store.rows())
    assert [(row["item"], row["value"]) for row in current(rows)] == [
        ("i1", place(texts[1])),
        ("i2", None),
    ]
    assert len(rows) == 6


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


def test_whole_conversations_are_compared_and_become_pairs_of_messages(
    browser: Browser, server: Server, store: Store, tmp_path: Path
) -> None:
    asked = [{"role": "user", "content": "One of fox owl. 2 turns."}]
    said = [
        [("assistant", "Is it quick?"), ("user", "Yes."), ("assistant", "Fox."), ("user", "Yes!")],
        [("assistant", "The owl."), ("user", "No, the fox.")],
    ]
    sides = [[{"role": role, "content": text} for role, text in one] for one in said]
    completions = [{"content": one, "run": None} for one in sides]
    sit_down(browser, server, store, item(1) | {"prompt": asked, "completions": completions})
    columns = "[...document.querySelectorAll('#completions article')].map(e => e.innerText)"
    better = 0
    for side, column in enumerate(browser.ask(columns)):
        number = 0 if "Yes!" in column else 1
        better = side if number == 0 else better
        lines = [line.strip() for line in column.splitlines()]
        heard = [lines.index(text) for _, text in said[number]]
        assert heard == sorted(heard)
        assert [lines[line - 1].lower() for line in heard] == [role for role, _ in said[number]]
    press(browser, "12"[better])
    wait_until_saved(browser)
    write_answers(store.rows(), tmp_path)
    assert read_jsonl(tmp_path / "final/preference.jsonl") == [
        {"prompt": asked, "chosen": sides[0], "rejected": sides[1]}
    ]
