"""Texts token by token: what colours them, and the numbers behind the colours."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.lib.report.numbers import MINUS, is_finite, plain
from recipes.lib.report.run_files import Row

MAX_TOKENS = 160  # shown of a text; a page with all of a long one would be megabytes
NUM_LAST_TOKENS = 40  # of these from its end, where the score is
JOINER = "\u200d"  # makes one emoji of its two neighbours


@dataclass(frozen=True)
class Shade:
    """One of the numbers of a token that the colours can show."""

    key: str
    label: str
    meaning: str
    is_centred: bool = False  # colours tell the difference to the mean, not to 0


SHADES = (
    Shade(
        "kl",
        "KL",
        "Nats by which the policy likes the token more than the reference does: where it moved. "
        "Blue: more likely than before, orange: less.",
    ),
    Shade(
        "value",
        "Value",
        "What the critic expects of the rest, before the token. Blue: above the mean of the tokens "
        "shown, orange: below.",
        is_centred=True,
    ),
    Shade(
        "advantage",
        "Advantage",
        "How much better the token was than expected, scaled over the rollout: what the update "
        "makes likelier (blue) or rarer (orange).",
    ),
    Shade(
        "reward",
        "Reward",
        "The KL penalty of each token, and on the last one the score: where the reward came in. "
        "Blue: above 0, orange: below.",
    ),
)


@dataclass(frozen=True)
class Numbers:
    """The numbers of one token, as printed; `place` counts from 1."""

    place: int
    texts: list[str]


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is drawn as one: a token, or several that share a character.

    `strengths` are -1 to 1, one for each of SHADES; `left_out` counts tokens that are not shown
    in front of this one; `is_heard` of what an environment said.
    """

    text: str
    numbers: list[Numbers]
    strengths: list[str]
    left_out: int = 0
    is_heard: bool = False


@dataclass(frozen=True)
class Ramp:
    """How a number becomes a colour: the middle has none, `reach` away from it the full one."""

    middle: float
    reach: float

    def strength(self, value: float) -> float:
        """-1 to 1; square roots, because one token holds the score and the others hundredths."""
        share = min(1.0, abs(value - self.middle) / self.reach) if self.reach else 0.0
        return math.copysign(math.sqrt(share), value - self.middle)


def has_tokens(row: Row) -> bool:
    """Whether a sample has tokens, and each of the numbers for each of them."""
    tokens = row.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        return False
    columns = [row.get(f"token_{shade.key}") for shade in SHADES]
    return all(
        isinstance(column, list) and len(column) == len(tokens) and all(map(is_finite, column))
        for column in columns
    )


def scales(rows: Sequence[Row]) -> list[Ramp]:
    """One scale for each of SHADES, the same for all texts, so that they can be compared."""
    made = []
    for shade in SHADES:
        values = [value for row in rows for value in row[f"token_{shade.key}"]]
        middle = sum(values) / len(values) if shade.is_centred else 0.0
        reach = max(abs(value - middle) for value in values)
        made.append(Ramp(middle, reach))
    return made


def text_pieces(row: Row, with_scales: Sequence[Ramp]) -> list[Piece]:
    """The text of a sample in pieces, cut in the middle where it is long."""
    columns = [row[f"token_{shade.key}"] for shade in SHADES]
    spans = [range(turn["start"], turn["end"]) for turn in row.get("turns", ())]
    made, left_out = [], 0
    # Of a long text; of a short one it is empty.
    middle = range(MAX_TOKENS - NUM_LAST_TOKENS, len(row["tokens"]) - NUM_LAST_TOKENS)
    for text, places in grouped(row["tokens"]):
        if places[0] in middle:
            left_out += len(places)
            continue
        numbers = [Numbers(i + 1, [spelled(column[i]) for column in columns]) for i in places]
        strongest = [
            max((scale.strength(column[i]) for i in places), key=abs)
            for column, scale in zip(columns, with_scales, strict=True)
        ]
        is_heard = bool(spans) and not any(places[-1] in span for span in spans)
        made.append(Piece(text, numbers, [f"{s:.2f}" for s in strongest], left_out, is_heard))
        left_out = 0
    return made


def grouped(tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Texts that can be drawn by themselves, each with the places of its tokens.

    A token without text belongs to the next one that has some, and what modifies the sign before
    it (an accent, the skin of an emoji, a joiner) to that sign.
    """
    made: list[tuple[str, list[int]]] = []
    waiting: list[int] = []
    for place, token in enumerate(tokens):
        waiting.append(place)
        if not token:
            continue
        if made and _goes_on(made[-1][0], token):
            before, places = made.pop()
            made.append((before + token, places + waiting))
        else:
            made.append((token, waiting))
        waiting = []
    if waiting:
        before, places = made.pop() if made else ("", [])
        made.append((before, places + waiting))
    return made


def _goes_on(before: str, token: str) -> bool:
    first = token[0]
    is_skin = "\U0001f3fb" <= first <= "\U0001f3ff"
    is_second_half = _is_flag_half(first) and len(before) == 1 and _is_flag_half(before)
    is_mark = unicodedata.category(first).startswith("M")
    return JOINER in (first, before[-1]) or is_skin or is_second_half or is_mark


def _is_flag_half(sign: str) -> bool:
    return "\U0001f1e6" <= sign <= "\U0001f1ff"


def spelled(value: float) -> str:
    """A number as samples.jsonl has it, with a real minus sign."""
    return f"{value:g}".replace("-", MINUS)


def ends(scale: Ramp) -> tuple[str, str]:
    """The numbers at which the two colours are full."""
    return plain(scale.middle - scale.reach), plain(scale.middle + scale.reach)
