"""The hidden gold score as a reward function: with weight 0 it is logged and teaches nothing."""

from typing import Any

from recipes.lib.data.prompts import prompt_text
from recipes.lib.tasks.tales import gold_score


def gold(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Score tales as the simulated rater sees them, from text or messages."""
    pairs = zip(prompts, completions, strict=True)
    return [gold_score(prompt_text(p), prompt_text(c)) for p, c in pairs]
