"""Rows for each stage: plain text, prompts with completions, prompts alone."""

import random
from typing import Any

from recipes.lib.tasks.tales.pages import page
from recipes.lib.tasks.tales.prompts import draw_facts, facts_of, request
from recipes.lib.tasks.tales.stories import TELLERS, tell


def base_texts(number: int, seed: int) -> list[str]:
    """Plain pages for the base model; with more pages than facts, facts are told several times."""
    rng = random.Random(f"base {seed}")
    known = draw_facts("base", len(facts_of("base")), seed)
    return [page(known[i % len(known)], rng) for i in range(number)]


def sft_rows(split: str, number: int, seed: int) -> list[dict[str, Any]]:
    """Prompts with tales of mixed quality, in TRL's conversational prompt-completion format."""
    rng = random.Random(f"{split} {seed}")
    return [
        {
            "prompt": [{"role": "user", "content": request(facts, rng)}],
            "completion": [
                {"role": "assistant", "content": tell(facts, rng.choice(TELLERS), rng).text}
            ],
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
