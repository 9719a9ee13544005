"""GSM8K: school sums whose answer is one number, so that a completion can be checked.

    reward(y) = 1 if the last number of y is the number of the answer, 0 otherwise

As a reward: `--reward_funcs recipes.lib.tasks.gsm8k:correct_number`; the data have a column
`answer`,
which is the bare number or ends in `#### number`, as the published solutions do.

Source: Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

MARK = "####"
# Digits in groups of three or without separators, then decimals. A minus sign counts where it
# touches the number and no word or digit touches it: "16-3" is a difference, "- 3 apples" an item
# of a list, "a profit of -3", "-$3" and "$-3" are negative.
NUMBER_PATTERN = re.compile(
    r"(?P<sign>(?<![\w.)\]])[-\u2212]\$?)?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<decimals>\.\d+)?"
)


def correct_number(
    completions: Sequence[Any], answer: Sequence[Any], **_: Any
) -> list[float | None]:
    """Reward: is the last number of the completion that of the answer?

    Args:
        completions: Texts, or messages.
        answer: Column of the data.

    Returns:
        1.0 or 0.0; None where the answer holds no number.
    """
    return [
        _compare(_text(completion), str(expected))
        for completion, expected in zip(completions, answer, strict=True)
    ]


def last_number(text: str) -> Decimal | None:
    """The last number that a text names.

    Args:
        text: For example "She pays $1,234.50." or "That is 25 %".

    Returns:
        The number without its unit; None where there is none.
    """
    found = None
    for match in NUMBER_PATTERN.finditer(text):
        digits = (match["whole"] or "").replace(",", "") + (match["decimals"] or "")
        if digits:
            found = Decimal(digits)
            found = -found if match["sign"] else found
    return found


def expected_number(answer: str) -> Decimal | None:
    """The number of an answer: what stands after the last `####`, or the whole.

    Args:
        answer: A bare number, or a solution.
    """
    return last_number(answer.rpartition(MARK)[2])


def _compare(completion: str, answer: str) -> float | None:
    expected = expected_number(answer)
    if expected is None:
        return None
    return float(last_number(completion) == expected)


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
