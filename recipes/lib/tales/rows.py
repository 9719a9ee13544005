"""Rows for each stage: plain text, prompts with completions, prompts alone."""

import random
from typing import Any

from recipes.lib.tales.pages import page
from recipes.lib.tales.prompts import draw_facts, request
from recipes.lib.tales.stories import TELLERS, tell


def base_texts(number: int, seed: int) -> list[str]:
    """Plain pages for the base model."""
    rng = random.Random(f"base {seed}")
    return [page(facts, rng) for facts in draw_facts("base", number, seed)]


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
