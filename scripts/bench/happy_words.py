"""A reward that anyone can check by hand: (happy words - sad words) / 5."""

from typing import Any

HAPPY = (
    "happy smiled laughed fun love loved friend friends play played hug hugged good nice kind joy "
    "smile laugh best glad"
).split()
SAD = (
    "sad cried cry hurt angry scared mad bad lost alone broke broken fell afraid sorry mean pain "
    "tears worried upset"
).split()


def happy_words(completions: list[str], **columns: Any) -> list[float]:
    """Score each completion by its everyday words."""
    return [_score(text) for text in completions]


def _score(text: str) -> float:
    words = [word.strip(".,!?\"'").lower() for word in text.split()]
    return sum((word in HAPPY) - (word in SAD) for word in words) / 5
