import re
import unicodedata

import pytest

from recipes.lib.annotation import text
from recipes.lib.errors import UserError

# Format characters that are drawn: signs of numbers and of the Quran, hieroglyphs, shorthand.
DRAWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
DRAWN |= {*range(0x13430, 0x13440)}
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
KEPT = {
    "lines": "one\n\ttwo\r\nthree",
    "family": FAMILY,
    "rainbow flag": "\U0001f3f3\ufe0f\u200d\U0001f308",
    "skin and profession": "\U0001f469\U0001f3fd\u200d\U0001f4bb",
    "heart": "\u2764\ufe0f",
    "keycap": "1\ufe0f\u20e3",
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Sinhala": "\u0dc1\u0dca\u200d\u0dbb\u0dd3",
    "Chinese": "\u732b\u3000\u72d7\uff0c",
    "Arabic": "\u0645\u0631\u062d\u0628\u0627",
}


def test_all_controls_formats_separators_and_halves_are_told_from_the_rest() -> None:
    wanted = [
        chr(code)
        for code in range(0x110000)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp", "Cs")
        and chr(code) not in "\t\n"
        and code not in DRAWN
    ]
    assert len(wanted) > 2_200
    for one in wanted:
        assert text.parts(f"a{one}b") == ["a", one, "b"], hex(ord(one))


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_what_draws_emoji_and_letters_stays(kept: str) -> None:
    assert text.parts(kept) == [kept]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("pay \u202egpj.exe", r"pay \u202egpj.exe"),
        ("pass\u200bword", r"pass\u200bword"),
        ("a\u200db", r"a\u200db"),
        (f"{FAMILY}\u200d.", FAMILY + r"\u200d."),
        ("x\ufe0f", r"x\ufe0f"),
        ("over\rwritten", r"over\rwritten"),
        ("\U000e0061\ud800", r"\U000e0061\ud800"),
    ],
)
def test_the_rest_is_shown_as_escapes(given: str, shown: str) -> None:
    assert text.visible(given) == shown
    assert "".join(text.parts(given)) == given


def test_messages_say_what_they_hold() -> None:
    call = {"function": {"name": "add"}}
    told = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "x"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    assert text.messages(told) == [
        ("user", "Hi x"),
        ("assistant", '{"tool_calls": [{"function": {"name": "add"}}]}'),
    ]


def test_differences_are_the_words_that_the_other_has_not() -> None:
    one, other, third = text.differences(["a red cat", "a blue cat", "a red cat \u72d7\u732b"])
    assert one == [(False, ["a "]), (True, ["red"]), (False, [" cat"])]
    assert other == [(False, ["a "]), (True, ["blue"]), (False, [" cat"])]
    assert third == [(False, ["a red cat"]), (True, [" \u72d7\u732b"])]
    (_, changed) = text.differences(["\u6211\u7231\u732b", "\u6211\u7231\u72d7"])
    assert changed == [(False, ["\u6211\u7231"]), (True, ["\u72d7"])]


def test_long_texts_are_compared_in_lines_and_longer_ones_are_not() -> None:
    lines = [f"word {n} " * 3 + "\n" for n in range(5_000)]
    one, _ = text.differences(["".join(lines), "".join([*lines[:9], "new\n", *lines[9:]])])
    assert not any(differs for differs, _ in one)
    assert "".join("".join(parts) for _, parts in one) == "".join(lines)
    with pytest.raises(UserError, match="at most 6000 words or lines"):
        text.differences(["\n" * 7_000, "a b" * 7_000])
    with pytest.raises(UserError, match="needs two texts"):
        text.differences(["one"])


def test_markdown_is_rendered_and_nothing_of_it_leads_anywhere() -> None:
    given = (
        "# Hi\n\n**b** `c`\n\n| a |\n|---|\n| 1 |\n\n![x](http://h/p.png) [y](http://h) <http://h>"
    )
    made = text.markdown(f"{given} <img src=x onerror=alert(1)> &#8238;z\u200b\n\n[r]: http://h")
    assert "<h1>Hi</h1>" in made
    assert "<strong>b</strong> <code>c</code>" in made
    assert "<td>1</td>" in made
    assert "![x](http://h/p.png) [y](http://h) &lt;http://h&gt;" in made
    assert r"\u202ez\u200b" in made
    assert "[r]: http://h" in made
    tags = set(re.findall(r"<(/?\w+[^>]*)>", made))
    assert all(re.fullmatch(r"/?\w+", tag) for tag in tags)  # no attribute anywhere
    assert not {"a", "img", "script"} & tags
