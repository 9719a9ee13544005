"""Prompts as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from recipes.lib.errors import UserError
from recipes.lib.generation import prompt_token_ids


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
    data: Dataset,
    tokenizer: Any,
    max_prompt_length: int | None,
    template_kwargs: dict[str, Any] | None,
) -> Prompts:
    """Tokenize prompts; messages are rendered up to where the assistant speaks.

    Args:
        data: Data set with a `prompt` column of text or messages.
        tokenizer: The policy's tokenizer.
        max_prompt_length: Longest prompt in tokens; None for any length.
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
    ids = [prompt_token_ids(tokenizer, prompt, template_kwargs) for prompt in given]
    _check(ids, max_prompt_length)
    return Prompts(data, ids)


def _check(ids: list[list[int]], max_prompt_length: int | None) -> None:
    empty = [row for row, tokens in enumerate(ids) if not tokens]
    if empty:
        raise UserError(f"prompt of row {empty[0]} is empty ({len(empty)} such rows); drop it.")
    if max_prompt_length is None:
        return
    long = [row for row, tokens in enumerate(ids) if len(tokens) > max_prompt_length]
    if long:
        raise UserError(
            f"max_prompt_length={max_prompt_length}: the prompt of row {long[0]} has "
            f"{len(ids[long[0]])} tokens ({len(long)} such rows); raise the limit or drop them."
        )


def check_context(prompts: Prompts, config: Any, max_completion_length: int | None) -> None:
    """Refuse prompts that leave no room for a completion in the model's context.

    Args:
        prompts: The prompts.
        config: Configuration of the policy.
        max_completion_length: Most tokens of a completion; None where there is no limit.

    Raises:
        UserError: The longest prompt and a completion are longer than the context.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(tokens) for tokens in prompts.ids)
    if context is not None and longest + (max_completion_length or 1) > context:
        raise UserError(
            f"max_completion_length={max_completion_length}: with the longest prompt of {longest} "
            f"tokens that is more than the model's context of {context}; lower it, or drop the "
            "prompts that are long (rlhf data shows the lengths)."
        )
