"""Texts for the page: whatever a model wrote is shown, and does nothing.

Characters that steer a terminal, turn the direction of reading or take no place are told from the
others, so that the page can show them as escapes. What draws an emoji or joins letters stays.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from recipes.lib.data.messages import join_parts
from recipes.lib.errors import UserError

Parts = list[str]  # of a text: plain, hidden, plain, hidden, ..., plain

MAX_WORDS = 6_000  # of a text that is compared
EMOJI = r"\u00a9\u00ae\u203c\u2049\u2122-\u27ff\u2900-\u2bff\u3030\u303d\u3297\u3299"
EMOJI += r"\U0001f000-\U0001faff"
JOINING = r"\u0600-\u109f\u1780-\u17ff"  # scripts in which (non-)joiners are spelling
# The default ignorable code points of Unicode, controls, separators and halves of characters.
HIDDEN = re.compile(
    r"((?:[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb"
    r"\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]|\r(?!\n)"
    rf"|(?<![{EMOJI}\ufe0f{JOINING}])[\u200c\u200d]|[\u200c\u200d](?![{EMOJI}{JOINING}])"
    rf"|(?<![#*0-9{EMOJI}])[\ufe0e\ufe0f])+)"
)
WORD = re.compile(r"[^\W\u2e80-\u9fff\uac00-\ud7ff]+|\s+|.", re.DOTALL)  # Chinese has no spaces
TAGS = "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong del table thead tbody tr"


def parts(text: str) -> Parts:
    """Tell characters that nobody would see from the others.

    Args:
        text: Any text.

    Returns:
        Its parts, in turns plain and hidden; joined they are the text.
    """
    return HIDDEN.split(text)


def visible(text: str) -> str:
    """The text with what is hidden as escapes, lines and emoji as they are."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def messages(content: Any) -> list[tuple[str, str]]:
    """Role and text of each message.

    Args:
        content: Text, which has no role, or messages.

    Returns:
        Pairs of role and text; what is no text, such as the call of a tool, as JSON.
    """
    if isinstance(content, str):
        return [("", content)]
    pairs = []
    for message in content:
        said = join_parts(message.get("content"))
        more = {name: message[name] for name in message if name not in ("role", "content")}
        lines = [one if isinstance(one, str) else json.dumps(one) for one in (said, more) if one]
        pairs.append((message["role"], "\n".join(lines)))
    return pairs


def differences(contents: Sequence[Any]) -> list[list[tuple[bool, Parts]]]:
    """Mark the words in which completions differ from the first, and the first from the second.

    Args:
        contents: At least two completions.

    Returns:
        For each its stretches: whether it differs, and its parts.

    Raises:
        UserError: There is nothing to compare, or too much.
    """
    texts = ["\n\n".join(text for _, text in messages(content)) for content in contents]
    cut = [WORD.findall(text) for text in texts]
    if max(map(len, cut)) > MAX_WORDS:
        cut = [text.splitlines(keepends=True) for text in texts]
    if len(cut) < 2 or max(map(len, cut)) > MAX_WORDS:
        raise UserError(f"differences: needs two texts of at most {MAX_WORDS} words or lines.")
    marked = []
    for number, words in enumerate(cut):
        steps = difflib.SequenceMatcher(None, cut[0 if number else 1], words).get_opcodes()
        pieces = [(name != "equal", "".join(words[start:end])) for name, _, _, start, end in steps]
        marked.append([(differs, parts(text)) for differs, text in pieces if text])
    return marked


def markdown(text: str) -> str:
    """Render Markdown without links, pictures and attributes.

    Args:
        text: What a model wrote.

    Returns:
        Sanitised HTML with hidden characters as escapes, those that were written as entities too.
    """
    import nh3
    from markdown_it import MarkdownIt

    # Pictures and links stay as they are written: one sees where they would lead.
    off = ["image", "link", "autolink", "reference", "html_block", "html_inline"]
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    rendered = parser.disable(off).render(text.encode("utf-8", "replace").decode("utf-8"))
    return visible(nh3.clean(rendered, tags={*TAGS.split(), "th", "td", "s"}, attributes={}))
