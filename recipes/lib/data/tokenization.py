"""Rows as a model sees them: the tokens that TRL's trainers make, and which of them carry loss.

Some tokenizers merge characters across the end of the prompt: the text of prompt and completion has
other tokens than the two one after the other. A policy is asked with the tokens of the prompt
alone, so that is what it is trained on: the prompt's own tokens, and behind them those of the
completion.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.lib.data.answers import completions_of
from recipes.lib.data.file_rows import Row
from recipes.lib.data.formats import Format
from recipes.lib.errors import UserError
from recipes.lib.models.tokenizers import without_bos

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

NUM_PROBED = 1000  # rows; a tokenizer of this kind shows itself within a few


@dataclass(frozen=True)
class Tokens:
    """One sequence that a row gives."""

    name: str  # "chosen", "rejected", "rank 2", or "" where a row gives one sequence
    ids: list[int]
    has_loss: list[bool]  # by token; all false for a prompt, whose completion is sampled
    start: int = 0  # where the completion begins; of a pair by itself, as KTO takes each side


def tokenize_row(
    row: Row,
    shape: Format,
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only_loss: bool = False,
) -> list[Tokens]:
    """Tokenize a row as the trainers do that take its format.

    SFT for texts, messages and completions; DPO for pairs, KTO for labels; a prompt alone as it is
    sampled from. A reward model reads the same tokens of a pair as DPO.

    Args:
        row: A good row of that format.
        shape: The format.
        tokenizer: The model's, with the chat template to use.
        assistant_only_loss: Of messages: loss on the assistant's tokens alone.

    Returns:
        One sequence, two for a pair, or those of a ranking.
    """
    if shape.columns == ("chosen", "rejected"):
        from trl import extract_prompt

        row = row | extract_prompt(row)
    options = {"tools": tools_of(row)}
    options |= row.get("chat_template_kwargs") or {}
    if "chosen" in shape.columns:
        return _pair(row, tokenizer, options)
    if "ranks" in shape.columns:
        return _ranked(row, tokenizer, options)
    if "completion" in shape.columns:
        if (
            len(shape.columns) == 2
            and isinstance(row["prompt"], str)
            and spans_boundary(row, tokenizer)
        ):
            made = tokenize_apart(row, tokenizer)  # as the recipe sft does, and KTO does not
            mask = list(map(bool, made["completion_mask"]))
            return [Tokens("", made["input_ids"], mask, mask.index(True))]
        ids, start = _completion(row["prompt"], row["completion"], tokenizer, options)
        return [Tokens("", ids, [place >= start for place in range(len(ids))], start)]
    if shape.columns == ("prompt",):
        ids = _ids(row["prompt"], tokenizer, options, add_generation_prompt=True)
        return [Tokens("", ids, [False] * len(ids))]
    (column,) = shape.columns
    if assistant_only_loss and isinstance(row[column], list):
        return [_assistant_only(row[column], tokenizer, options)]
    ids = _ids(_ended(row[column], tokenizer), tokenizer, options)
    return [Tokens("", ids, [True] * len(ids))]


def answer_ids(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """What a reward model reads of an answer: the tokens of each completion behind its prompt.

    Args:
        row: A good row of any kind of answer.
        tokenizer: The model's, with the chat template to use.
    """
    options = {"tools": tools_of(row)} | (row.get("chat_template_kwargs") or {})
    said, _ = completions_of(row)
    whole = (row["prompt"] + one if row.get("prompt") else one for one in said)
    return [_ids(_ended(one, tokenizer), tokenizer, options) for one in whole]


def tools_of(row: Row) -> list[Any] | None:
    """The tools of a row, which may stand there in JSON."""
    tools = row.get("tools") or None
    found: list[Any] | None = json.loads(tools) if isinstance(tools, str) else tools
    return found


def loss_segments(seen: Tokens, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """Cut the text of a sequence where the loss begins and ends.

    Args:
        seen: The sequence.
        tokenizer: Its tokenizer.

    Returns:
        Texts with special tokens, and whether they carry loss.
    """
    found = []
    start, told = 0, 0
    text = tokenizer.decode(seen.ids)
    for place in range(1, len(seen.ids) + 1):
        if place == len(seen.ids) or seen.has_loss[place] != seen.has_loss[start]:
            # From the beginning: tokens at a beginning lose the space in front of them.
            end = len(tokenizer.decode(seen.ids[:place])) if place < len(seen.ids) else len(text)
            found.append((text[told:end], seen.has_loss[start]))
            start, told = place, end
    return found


def _ranked(row: Row, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> list[Tokens]:
    found = [_completion(row["prompt"], one, tokenizer, options) for one in row["completions"]]
    return [
        Tokens(f"rank {rank}", ids, [place >= start for place in range(len(ids))], start)
        for (ids, start), rank in zip(found, row["ranks"], strict=True)
    ]


def _pair(row: Row, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> list[Tokens]:
    found = {
        side: _completion(row["prompt"], row[side], tokenizer, options)
        for side in ("chosen", "rejected")
    }
    start = min(place for _, place in found.values())  # TRL's DPO gives both the same prompt
    return [
        Tokens(side, ids, [place >= start for place in range(len(ids))], own)
        for side, (ids, own) in found.items()
    ]


def _completion(
    prompt: Any, completion: Any, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> tuple[list[int], int]:
    from trl.data_utils import common_prefix_length

    before = _ids(prompt, tokenizer, options, add_generation_prompt=True)
    ids = _ids(prompt + _ended(completion, tokenizer), tokenizer, options)
    return ids, common_prefix_length(before, ids)


def _assistant_only(
    messages: list[Row], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> Tokens:
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if not has_generation_markers(tokenizer.chat_template):
        try:
            options = {"chat_template": get_training_chat_template(tokenizer)} | options
        except ValueError as error:
            raise UserError(
                "assistant_only_loss=true: the chat template does not mark the assistant's tokens; "
                "add {% generation %} to it, or leave assistant_only_loss out."
            ) from error
    processed = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
    )
    return Tokens("", list(processed["input_ids"]), list(map(bool, processed["assistant_masks"])))


def _ids(
    value: Any, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any], **more: Any
) -> list[int]:
    if isinstance(value, str):
        return list(tokenizer(text=without_bos(value, tokenizer))["input_ids"])
    rendered = tokenizer.apply_chat_template(
        value, tokenize=True, return_dict=True, **options, **more
    )
    return list(rendered["input_ids"])


def _ended(value: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Plain text with the end token that the trainers put there."""
    end = tokenizer.eos_token
    return value + end if isinstance(value, str) and end and not value.endswith(end) else value


def keep_boundary(rows: Any, known: Dataset, tokenizer: Any) -> Any:
    """Tokenize rows of plain text where TRL would let tokens span prompt and completion.

    Args:
        rows: Rows with prompt and completion as text, a dataset or a stream.
        known: The same rows, or of a stream the first.
        tokenizer: The model's tokenizer.

    Returns:
        The same rows; with `input_ids` and `completion_mask` if one of the first needs it.
    """
    if not any(
        spans_boundary(row, tokenizer) for row in known.select(range(min(NUM_PROBED, len(known))))
    ):
        return rows
    named = {"desc": "Tokenizing"} if rows is known else {}  # a stream has no progress to name
    return rows.map(lambda row: tokenize_apart(row, tokenizer), **named)


def spans_boundary(row: dict[str, Any], tokenizer: Any) -> bool:
    """Whether a token of a row's text is of its prompt and of its completion.

    Args:
        row: prompt and completion as text.
        tokenizer: The model's tokenizer.

    Returns:
        True if the prompt alone has other tokens.
    """
    text = row["prompt"] + _ended(row["completion"], tokenizer)
    prompt, whole = (_ids(one, tokenizer, {}) for one in (row["prompt"], text))
    return whole[: len(prompt)] != prompt


def tokenize_apart(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """Tokens of the prompt and behind them those of the completion with its EOS.

    Args:
        row: prompt and completion as text.
        tokenizer: The model's tokenizer.

    Returns:
        `input_ids`, and `completion_mask` with 1 for every token of the completion.
    """
    from trl.data_utils import common_prefix_length

    end = _ended(row["completion"], tokenizer)
    prompt, whole = (_ids(one, tokenizer, {}) for one in (row["prompt"], row["prompt"] + end))
    completion = list(tokenizer(end, add_special_tokens=False)["input_ids"])
    if tokenizer.decode(prompt + completion) != tokenizer.decode(whole):
        # The tokenizer puts a mark before every text: keep its own tokens from where they differ.
        same = common_prefix_length(prompt, whole)
        prompt, completion = whole[:same], whole[same:]
    mask = [0] * len(prompt) + [1] * len(completion)
    return {"input_ids": prompt + completion, "completion_mask": mask}
