"""Rows for each stage: plain text, prompts with completions, prompts alone."""

import random
from typing import Any

from recipes.lib.tasks.tales.pages import GROWTH, page
from recipes.lib.tasks.tales.prompts import draw_facts, facts_of, request
from recipes.lib.tasks.tales.stories import TELLER, tell


def base_texts(number: int, seed: int) -> list[str]:
    """Pages for the base model, in the order in which they are to be read."""
    rng = random.Random(f"base {seed}")
    known = {num_words: facts_of("base", num_words) for _, num_words in GROWTH}
    sizes = (next(n for share, n in GROWTH if i < share * number) for i in range(number))
    return [page(rng.choice(known[size]), size, rng) for size in sizes]


def sft_rows(split: str, number: int, seed: int) -> list[dict[str, Any]]:
    """Prompts with tales of mixed quality, in TRL's conversational prompt-completion format."""
    rng = random.Random(f"{split} {seed}")
    return [
        {
            "prompt": [{"role": "user", "content": request(facts, rng)}],
            "completion": [{"role": "assistant", "content": tell(facts, TELLER, rng).text}],
        }
        for facts in draw_facts(split, number, seed)
    ]


def prompt_rows(split: str, number: int, seed: int) -> list[dict[str, Any]]:
    """Prompts alone, in TRL's conversational format."""
    rng = random.Random(f"{split} {seed}")
    return [
        {"prompt": [{"role": "user", "content": request(facts, rng)}]}
        for facts in draw_facts(split, number, seed)
    ]
