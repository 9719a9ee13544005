"""A verifiable reward: one whole sentence of at most eight words."""

from typing import Any

MOST_WORDS = 8


def brief(completions: list[Any], **columns: Any) -> list[float]:
    """1 for an answer of 1 to 8 words that ends as a sentence does, else 0."""
    texts = [said if isinstance(said, str) else said[-1]["content"] for said in completions]
    return [
        float(1 <= len(text.split()) <= MOST_WORDS and text.rstrip().endswith((".", "!", "?")))
        for text in texts
    ]
