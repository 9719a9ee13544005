"""Prompts as token ids, and completions as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from recipes.lib.errors import UserError


@dataclass
class Prompts:
    """A data set of prompts, tokenized once.

    Args:
        data: The data set.
        ids: Token ids of each prompt.
    """

    data: Dataset
    ids: list[list[int]]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.ids)

    def columns(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """Further columns of some rows, for reward functions."""
        others = [name for name in self.data.column_names if name != "prompt"]
        return {name: [self.data[row][name] for row in rows] for name in others}


def tokenize_prompts(
    data: Dataset, tokenizer: Any, max_prompt_length: int, template_kwargs: dict[str, Any] | None
) -> Prompts:
    """Tokenize prompts; messages are rendered up to where the assistant speaks.

    Args:
        data: Data set with a `prompt` column of text or messages.
        tokenizer: The policy's tokenizer.
        max_prompt_length: Longest prompt in tokens.
        template_kwargs: Further arguments of the chat template.

    Returns:
        The prompts.

    Raises:
        UserError: No `prompt` column, no rows, an empty prompt, one that is too long, or messages
            for a tokenizer without a chat template.
    """
    if "prompt" not in data.column_names:
        raise UserError(f"the data set has no column prompt; it has {data.column_names}.")
    if len(data) == 0:
        raise UserError("the data set of prompts is empty; check its path and split.")
    given = list(data["prompt"])
    if isinstance(given[0], str):
        ids = tokenizer(given)["input_ids"]
    else:
        if tokenizer.chat_template is None:
            raise UserError(
                "the prompts are messages, and the tokenizer has no chat template; give prompts "
                "as text, or a model with a chat template."
            )
        texts = tokenizer.apply_chat_template(
            given, add_generation_prompt=True, tokenize=False, **(template_kwargs or {})
        )
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    _check(ids, max_prompt_length)
    return Prompts(data, ids)


def _check(ids: list[list[int]], max_prompt_length: int) -> None:
    empty = [row for row, tokens in enumerate(ids) if not tokens]
    if empty:
        raise UserError(f"prompt of row {empty[0]} is empty ({len(empty)} such rows); drop it.")
    long = [row for row, tokens in enumerate(ids) if len(tokens) > max_prompt_length]
    if long:
        raise UserError(
            f"max_prompt_length={max_prompt_length}: the prompt of row {long[0]} has "
            f"{len(ids[long[0]])} tokens ({len(long)} such rows); raise the limit or drop them."
        )


def completion_texts(
    tokenizer: Any, prompts: Sequence[list[int]], completions: Sequence[list[int]]
) -> list[str]:
    """Text of each completion as it follows its prompt.

    A tokenizer that marks word starts would lose a leading space if the completion were decoded
    alone, so the prompt is decoded with it and taken off.

    Args:
        tokenizer: The policy's tokenizer.
        prompts: Token ids of the prompts.
        completions: Token ids of the completions.

    Returns:
        The texts, without special tokens.
    """

    def decode(rows: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(rows, skip_special_tokens=True)

    before = decode(list(prompts))
    whole = decode([p + c for p, c in zip(prompts, completions, strict=True)])
    alone = decode(list(completions))
    return [
        w[len(b) :] if w.startswith(b) else a for b, w, a in zip(before, whole, alone, strict=True)
    ]
