"""What a model may write against the page and whoever reads it: 200 texts in Chromium."""

import json
import random
import unicodedata
from pathlib import Path

import pytest

from recipes.lib.feedback.store import Store
from tests.helpers.devtools import Browser
from tests.helpers.feedback_page import ASKED, CHROMIUM, COMMAND, press, sit_down, wait_until_saved
from tests.helpers.feedback_server import Server, item

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


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
    flags = [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"]
    browser = Browser([*COMMAND, *flags])
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
