"""Pairs of completions: sampling them, and the rows that keep a judgement on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.lib.data.prompts import Prompt
from recipes.lib.feedback.rater import Rating
from recipes.lib.generation.completions import Completion, complete
from recipes.lib.rewards.scoring import as_answers


@dataclass(frozen=True)
class Pair:
    """Two different completions of one prompt."""

    row: int  # of the prompt
    prompt: Prompt
    first: Completion
    second: Completion


def sample_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    num_tries: int,
    **sampling: Any,
) -> list[Pair]:
    """Sample two completions for each prompt; equal or empty ones are drawn again.

    Args:
        model: The policy whose completions are compared.
        tokenizer: Its tokenizer.
        prompts: Texts or messages.
        num_tries: Draws of a prompt before it is left out.
        **sampling: max_new_tokens, temperature, seed, batch_size, as in generation.completions.

    Returns:
        The pairs in the order of their prompts.
    """
    seed = sampling.pop("seed")
    pairs: dict[int, Pair] = {}
    for attempt in range(num_tries):
        left = [row for row in range(len(prompts)) if row not in pairs]
        if not left:
            break
        twice = [prompts[row] for row in left for _ in range(2)]
        drawn = complete(model, tokenizer, twice, seed=seed + 1_000_003 * attempt, **sampling)
        for row, one, other in zip(left, drawn[::2], drawn[1::2], strict=True):
            if one.text.strip() and other.text.strip() and one.text != other.text:
                pairs[row] = Pair(row, prompts[row], one, other)
    return [pairs[row] for row in sorted(pairs)]


def feedback_row(pair: Pair, rating: Rating, run: str, created_at: str) -> dict[str, Any]:
    """One row of feedback.jsonl for a pair that the simulated rater judged.

    Args:
        pair: The pair.
        rating: What the rater said.
        run: Model that wrote the completions.
        created_at: Time in ISO 8601.

    Returns:
        The row.
    """
    texts = (pair.first.text, pair.second.text)
    text = json.dumps([pair.prompt, *texts], sort_keys=True)
    return {
        "id": hashlib.sha256(text.encode()).hexdigest()[:16],
        "kind": "pair",
        "prompt": pair.prompt,
        "completions": [{"content": text, "run": run} for text in texts],
        "value": rating.value,
        "aspect": "overall",
        "strength": None,
        "annotator": "simulated rater",
        "source": "simulated",
        "noise": rating.noise,
        "seconds": None,
        "created_at": created_at,
    }


def preference_row(pair: Pair, rating: Rating) -> dict[str, Any]:
    """The pair in TRL's preference format, as messages where the prompt is messages."""
    sides = as_answers([pair.prompt], (pair.first.text, pair.second.text))
    chosen, rejected = sides[rating.value], sides[1 - rating.value]
    return {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
