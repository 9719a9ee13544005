"""The samples of a PPO report, token by token, under a real mouse and real keys in Chromium."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from recipes.lib.report.page import write_report
from tests.helpers import report_runs
from tests.helpers.devtools import Browser

CHROMIUM = shutil.which("chromium")
SHADES = ["kl", "value", "advantage", "reward"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
MIXED = ["Hi", "", "", "\u732b", "\u72d7", "", "\U0001f44d", "", "\U0001f3fd", "\n", "end", "<eos>"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def sample(step: int, tokens: list[str], prompt: str = "Say something.") -> dict[str, Any]:
    """A row of samples.jsonl with invented numbers that differ for every token."""
    rng = np.random.default_rng(step)
    row: dict[str, Any] = {"step": step, "episode": 8 * step, "prompt": prompt, "score": 1.5}
    row |= {"completion": "".join(tokens), "kl": 2.0, "num_tokens": len(tokens), "tokens": tokens}
    for name in SHADES:
        row[f"token_{name}"] = [float(f"{x:.4g}") for x in rng.normal(size=len(tokens))]
    row["token_reward"] = [-0.0125] * (len(tokens) - 1) + [1.5]
    return row


def make_page(folder: Path, *samples: dict[str, Any]) -> Path:
    return write_report(report_runs.write_run(folder, {"recipe": "ppo"}, samples=list(samples)))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    profile = tmp_path_factory.mktemp("profile")
    made = Browser([str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    return sample(4, MIXED)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]) -> Path:
    return make_page(tmp_path_factory.mktemp("run"), row)


def shown(browser: Browser) -> list[list[str]]:
    """What each visible box of numbers says: place and four numbers of each of its tokens."""
    boxes = browser.ask(
        "[...document.querySelectorAll('.t small')]"
        ".filter(e => e.checkVisibility() && e.getClientRects().length)"
        ".map(e => [...e.querySelectorAll('b, i')].map(x => x.innerText))"
    )
    return [[text.replace("\u2212", "-") for text in box] for box in boxes]


def numbers(row: dict[str, Any], place: int) -> list[float]:
    """Place (from 1) and numbers of a token, from the file."""
    return [place, *(row[f"token_{name}"][place - 1] for name in SHADES)]


def test_pointing_at_a_token_shows_the_numbers_of_the_file(
    browser: Browser, page: Path, row: dict[str, Any]
) -> None:
    browser.open(page)
    assert shown(browser) == []
    texts = browser.ask("[...document.querySelectorAll('.t')].map(e => e.firstChild.textContent)")
    assert texts == ["Hi", "\u732b", "\u72d7", "\U0001f44d\U0001f3fd", "\n", "end", "<eos>"]
    places = [[1], [2, 3, 4], [5], [6, 7, 8, 9], [10], [11], [12]]
    for piece, tokens in enumerate(places):
        browser.point(f"document.querySelectorAll('.t')[{piece}]")
        (box,) = shown(browser)
        assert [float(text) for text in box] == [x for t in tokens for x in numbers(row, t)]
    browser.mouse(5, 5)
    assert shown(browser) == []


def test_keys_and_taps_show_them_too(browser: Browser, page: Path, row: dict[str, Any]) -> None:
    browser.open(page)
    browser.mouse(5, 5)
    browser.ask("document.getElementById('shade-kl').focus()")
    for _ in range(20):
        browser.press("Tab", 9)
        if browser.ask("document.activeElement.className").startswith("t"):
            break
    (box,) = shown(browser)
    assert [float(text) for text in box] == numbers(row, 1)
    browser.press("Tab", 9)
    assert float(shown(browser)[0][0]) == 2
    # the mouse wins over the focus, so that never two boxes lie over each other
    browser.point("document.querySelectorAll('.t')[5]", click=True)
    assert [float(text) for text in shown(browser)[0]] == numbers(row, 11)
    assert len(shown(browser)) == 1


def colour(browser: Browser, piece: int) -> tuple[float, float]:
    """Opacity of the colours for above and below of a piece."""
    drawn = browser.ask(
        f"getComputedStyle(document.querySelectorAll('.t')[{piece}]).backgroundImage"
    )
    layers = re.findall(r"linear-gradient\((rgba?\([^)]*\))", drawn)
    opacities = [
        float(layer.split(",")[3].rstrip(") ")) if layer.startswith("rgba") else 1.0
        for layer in layers
    ]
    assert len(opacities) == 2
    return opacities[0], opacities[1]


def test_the_switch_changes_what_the_colours_show(
    browser: Browser, page: Path, row: dict[str, Any]
) -> None:
    browser.open(page)
    last = len(MIXED) - 1
    for name in SHADES:
        browser.point(f"document.querySelector('label[for=shade-{name}]')", click=True)
        values = row[f"token_{name}"]
        middle = sum(values) / len(values) if name == "value" else 0.0
        reach = max(abs(value - middle) for value in values)
        strength = (abs(values[last] - middle) / reach) ** 0.5
        above, below = colour(browser, 6)
        assert (above > 0) != (below > 0)
        assert (above > 0) == (values[last] > middle)
        assert max(above, below) == pytest.approx(0.55 * strength, abs=0.01)
        meanings = browser.ask(
            "[...document.querySelectorAll('.meaning')].filter(e => e.checkVisibility())"
            ".map(e => e.id)"
        )
        assert meanings == [f"meaning-{name}"]
    # of the rewards the score on the last token is full, a penalty of a hundredth of it is faint
    above, below = colour(browser, 6)
    assert above == pytest.approx(0.55, abs=0.01)
    assert below == 0
    above, below = colour(browser, 0)
    assert above == 0
    assert below == pytest.approx(0.55 * (0.0125 / 1.5) ** 0.5, abs=0.01)


def test_text_stays_readable_under_every_colour_in_both_schemes(
    browser: Browser, page: Path
) -> None:
    for dark in (False, True):
        browser.open(page, dark=dark)
        names = ("ink", "card", "above", "below")
        style = "getComputedStyle(document.documentElement)"
        got = {n: browser.ask(f"{style}.getPropertyValue('--{n}').trim()") for n in names}
        ink, card = (channels(got[name]) for name in ("ink", "card"))
        for name in ("above", "below"):
            front = [float(part) for part in got[name].split()]
            mixed = [0.55 * a + 0.45 * b for a, b in zip(front, card, strict=True)]
            light, dim = sorted((luminance(ink), luminance(mixed)), reverse=True)
            assert (light + 0.05) / (dim + 0.05) >= 4.5, (dark, name)


def channels(color: str) -> list[float]:
    return [float(int(color[i : i + 2], 16)) for i in (1, 3, 5)]


def luminance(rgb: list[float]) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    shares = [c / 255 for c in rgb]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_numbers_fit_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    browser.open(make_page(tmp_path, sample(4, [f" word{i}" for i in range(60)])), width=390)
    for piece in (0, 3, 30, 59):
        browser.point(f"document.querySelectorAll('.t')[{piece}]")
        left, right = browser.ask(
            "(() => { const e = [...document.querySelectorAll('.t small')]"
            ".find(e => e.getClientRects().length).getBoundingClientRect();"
            "return [e.left, e.right]; })()"
        )
        assert 0 <= left < right <= 390
        assert browser.ask("document.documentElement.scrollWidth") == 390


def ink_of(browser: Browser, folder: Path, tokens: list[str]) -> np.ndarray:
    """The pixels of a sample's text without its colours."""
    row = sample(4, tokens) | {f"token_{name}": [0.0] * len(tokens) for name in SHADES}
    browser.open(make_page(folder / "run", row), height=700)
    browser.mouse(5, 5)
    browser.screenshot(folder / "page.png")
    x, y, width, height = browser.ask(
        "(() => { const b = document.querySelector('.tokens').getBoundingClientRect();"
        "return [b.x, b.y, b.width, b.height].map(Math.round); })()"
    )
    pixels = np.asarray(imread(folder / "page.png"))[:, :, :3]
    return pixels[y : y + height, x : x + width]


def test_characters_of_several_tokens_have_their_glyphs(browser: Browser, tmp_path: Path) -> None:
    fonts = subprocess.run(["fc-list", ":lang=zh"], capture_output=True, text=True, check=True)
    if not fonts.stdout.strip():
        pytest.skip("no Chinese font is installed")
    split = [ink_of(browser, tmp_path, ["", "", sign] * 8) for sign in ("\u732b", "\u72d7")]
    assert (abs(split[0] - split[1]).max(axis=2) > 0.3).sum() > 150  # two signs, not two boxes
    # drawn token by token they look as in one piece
    whole = ink_of(browser, tmp_path, ["\u732b" * 8])
    assert (abs(split[0] - whole).max(axis=2) > 0.3).sum() < 30
    assert "\ufffd" not in json.dumps(browser.ask("document.body.innerText"))


@pytest.mark.parametrize("text", [report_runs.EMOJI, report_runs.ARABIC], ids=["emoji", "arabic"])
def test_what_belongs_together_is_drawn_as_in_one_piece(
    browser: Browser, tmp_path: Path, text: str
) -> None:
    split, whole = ink_of(browser, tmp_path, list(text)), ink_of(browser, tmp_path, [text])
    assert split.shape == whole.shape
    drawn = (abs(whole - np.median(whole)) > 0.3).any(axis=2).sum()
    assert drawn > 50
    assert (abs(split - whole).max(axis=2) > 0.3).sum() < 0.1 * drawn
