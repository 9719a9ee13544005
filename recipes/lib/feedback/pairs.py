"""Different completions of the same prompts: sampling them for a simulated rater."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.lib.data.prompts import Prompt
from recipes.lib.feedback.rows import Row, item_id
from recipes.lib.generation.completions import Completion, complete


@dataclass(frozen=True)
class Sampled:
    """Different completions of one prompt."""

    row: int  # of the prompt
    prompt: Prompt
    completions: Sequence[Completion]

    def item(self, run: str) -> Row:
        """What is judged, for `make_row`; `run` wrote the completions."""
        texts = [one.text for one in self.completions]
        contents = [{"content": text, "run": run} for text in texts]
        return {"id": item_id(self.prompt, texts), "prompt": self.prompt, "completions": contents}


def sample_sets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    num_completions: int,
    num_tries: int,
    **sampling: Any,
) -> list[Sampled]:
    """Sample completions for each prompt; where some are equal or empty, all are drawn again.

    Args:
        model: The policy whose completions are compared.
        tokenizer: Its tokenizer.
        prompts: Texts or messages.
        num_completions: For each prompt.
        num_tries: Draws of a prompt before it is left out.
        **sampling: max_new_tokens, temperature, seed, batch_size, as in generation.completions.

    Returns:
        The completions in the order of their prompts.
    """
    seed = sampling.pop("seed")
    found: dict[int, Sampled] = {}
    for attempt in range(num_tries):
        left = [row for row in range(len(prompts)) if row not in found]
        if not left:
            break
        asked = [prompts[row] for row in left for _ in range(num_completions)]
        drawn = complete(model, tokenizer, asked, seed=seed + 1_000_003 * attempt, **sampling)
        for place, row in enumerate(left):
            one = drawn[place * num_completions : (place + 1) * num_completions]
            texts = {completion.text for completion in one if completion.text.strip()}
            if len(texts) == num_completions:
                found[row] = Sampled(row, prompts[row], one)
    return [found[row] for row in sorted(found)]
