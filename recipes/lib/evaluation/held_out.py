"""A few completions of held-out rows beside what the data says, for people to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes.lib.data.prompts import prompt_text
from recipes.lib.generation.completions import complete, fits

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NUM_PROMPT_WORDS = 8  # of a row of plain text, to be continued


def held_out_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Dataset,
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
) -> list[dict[str, str]]:
    """Complete the first test prompts that leave room in the model's context.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        test: Rows in one of TRL's SFT formats.
        num_samples: How many.
        max_new_tokens: Longest completion, tokens.
        temperature: Of the sampling; 0 is greedy.

    Returns:
        Rows of prompt, reference and completion, as plain text.
    """
    kept: list[tuple[Any, str]] = []
    for row in test:
        if len(kept) == num_samples:
            break
        prompt, reference = prompt_and_reference(row)
        if prompt and fits(model, tokenizer, prompt, max_new_tokens):
            kept.append((prompt, reference))
    prompts, length = [prompt for prompt, _ in kept], max_new_tokens
    made = complete(model, tokenizer, prompts, max_new_tokens=length, temperature=temperature)
    return [
        {"prompt": prompt_text(prompt), "reference": reference, "completion": completion.text}
        for (prompt, reference), completion in zip(kept, made, strict=True)
    ]


def prompt_and_reference(row: dict[str, Any]) -> tuple[Any, str]:
    """What of a row is given to the model, and how the row itself goes on.

    Args:
        row: prompt and completion, or messages (the last is the reference), or text (the first
            words are the prompt).

    Returns:
        The prompt, text or messages, and the reference as text.
    """
    if "prompt" in row:
        return row["prompt"], prompt_text(row["completion"])
    if "messages" in row:
        return row["messages"][:-1], prompt_text(row["messages"][-1:])
    words = row["text"].split(" ")
    return " ".join(words[:NUM_PROMPT_WORDS]), " " + " ".join(words[NUM_PROMPT_WORDS:])
