"""Prompts as token ids."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.lib.data.problems import named_columns, places_of
from recipes.lib.errors import UserError, one_sentence
from recipes.lib.models.tokenizers import without_bos

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, Any]]


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
        columns = self.data[list(rows)]
        return {name: values for name, values in columns.items() if name != "prompt"}


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
        raise UserError(f"the data set has no column prompt; it has {named_columns(data)}.")
    if len(data) == 0:
        raise UserError("the data set of prompts is empty; check its path and split.")
    ids, places = [], places_of(data)
    for row, prompt in enumerate(data["prompt"]):
        try:
            ids.append(prompt_token_ids(tokenizer, prompt, template_kwargs))
        except UserError as error:
            told = str(error).replace(
                "prompt: the model's", f"prompt of {places[row]}: the model's"
            )
            raise UserError(told) from error
    empty = [row for row, tokens in enumerate(ids) if not tokens]
    if empty:
        raise UserError(f"prompt of {places[empty[0]]} is empty ({len(empty)} such rows); drop it.")
    longest = math.inf if max_prompt_length is None else max_prompt_length
    long = [row for row, tokens in enumerate(ids) if len(tokens) > longest]
    if long:
        raise UserError(
            f"max_prompt_length={max_prompt_length}: the prompt of {places[long[0]]} has "
            f"{len(ids[long[0]])} tokens ({len(long)} such rows); raise the limit or drop them."
        )
    return Prompts(data, ids)


def context_length(config: Any) -> int | None:
    """Most tokens that a model of this configuration reads; None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_context(prompts: Prompts, config: Any, max_completion_length: int | None) -> None:
    """Refuse prompts that leave no room for a completion in the model's context.

    Args:
        prompts: The prompts.
        config: Configuration of the policy.
        max_completion_length: Most tokens of a completion; None where there is no limit.

    Raises:
        UserError: The longest prompt and a completion are longer than the context.
    """
    context = context_length(config)
    longest = max(len(tokens) for tokens in prompts.ids)
    if context is not None and longest + (max_completion_length or 1) > context:
        raise UserError(
            f"max_completion_length={max_completion_length}: with the longest prompt of {longest} "
            f"tokens that is more than the model's context of {context}; lower it, or drop the "
            "prompts that are long (rlhf data shows the lengths)."
        )


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """Plain text of a prompt or completion, for people and for files of samples.

    Args:
        prompt: A text, or messages.

    Returns:
        The text; a single message gives its content, several give "role: content" lines.
    """
    if isinstance(prompt, str):
        return prompt
    # A call of a tool may come without content.
    texts = [str(message.get("content") or "") for message in prompt]
    if len(prompt) == 1:
        return texts[0]
    return "\n".join(f"{turn['role']}: {text}" for turn, text in zip(prompt, texts, strict=True))


def prompt_token_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    template_kwargs: dict[str, Any] | None = None,
) -> list[int]:
    """Token ids of one prompt, as TRL's trainers make them.

    Args:
        tokenizer: the model's tokenizer.
        prompt: a text (the tokenizer adds its special tokens) or messages (its chat template
            does, with the generation prompt).
        template_kwargs: further arguments of the chat template.

    Returns:
        The token ids.

    Raises:
        UserError: messages, and the tokenizer has no chat template, or one that cannot render
            them.
    """
    if isinstance(prompt, str):
        return list(tokenizer(without_bos(prompt, tokenizer))["input_ids"])
    if tokenizer.chat_template is None:
        raise UserError(
            "prompt: messages were given, but the model's tokenizer has no chat template; "
            "train it with chat_template_path, or use plain text prompts."
        )
    from jinja2.exceptions import TemplateError

    is_open = prompt[-1]["role"] == "assistant"
    try:
        rendered = tokenizer.apply_chat_template(
            prompt,
            # As TRL does it: an assistant's turn that the prompt begins is gone on with.
            add_generation_prompt=not is_open,
            continue_final_message=is_open,
            tokenize=True,
            return_dict=True,
            **(template_kwargs or {}),
        )
    except (TemplateError, ValueError) as error:  # the latter of a turn that is gone on with
        raise UserError(
            f"prompt: the model's chat template cannot render it ({one_sentence(error)}); "
            "train the model with another chat_template_path."
        ) from error
    return list(rendered["input_ids"])


def completion_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[int],
    completion_ids: list[int],
    ends: Collection[int] = (),
) -> str:
    """Text of a completion, with the space in front that many tokenizers drop at a beginning.

    Args:
        tokenizer: the model's tokenizer.
        prompt_ids: tokens before the completion.
        completion_ids: tokens of the completion.
        ends: further tokens that are no part of the text where they stand at its end.

    Returns:
        What the completion adds to the text of the prompt, without BOS, EOS and padding.
    """
    if completion_ids and completion_ids[-1] in ends:
        completion_ids = completion_ids[:-1]
    # Other special tokens are text: rewards look for <think>, and calls of tools may be marked so.
    silent = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    prompt_ids, completion_ids = (
        [token for token in ids if token not in silent] for ids in (prompt_ids, completion_ids)
    )
    before, whole = tokenizer.decode(prompt_ids), tokenizer.decode(prompt_ids + completion_ids)
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(completion_ids)
