"""Where a completion begins, for tokenizers that merge characters across the end of the prompt.

Such a tokenizer gives the text of prompt and completion other tokens than the two one after the
other. A policy is asked with the tokens of the prompt alone, so that is what it is trained on: the
prompt's own tokens, and behind them those of the completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

NUM_LOOKED_AT = 1000  # rows; a tokenizer of this kind shows itself within a few


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
        spans(row, tokenizer) for row in known.select(range(min(NUM_LOOKED_AT, len(known))))
    ):
        return rows
    named = {"desc": "Tokenizing"} if rows is known else {}  # a stream has no progress to name
    return rows.map(lambda row: split(row, tokenizer), **named)


def spans(row: dict[str, Any], tokenizer: Any) -> bool:
    """Whether a token of a row's text is of its prompt and of its completion.

    Args:
        row: prompt and completion as text.
        tokenizer: The model's tokenizer.

    Returns:
        True if the prompt alone has other tokens.
    """
    prompt, whole = _ids(tokenizer, row["prompt"]), _ids(tokenizer, _whole(row, tokenizer))
    return whole[: len(prompt)] != prompt


def split(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """Tokens of the prompt and behind them those of the completion with its EOS.

    Args:
        row: prompt and completion as text.
        tokenizer: The model's tokenizer.

    Returns:
        `input_ids`, and `completion_mask` with 1 for every token of the completion.
    """
    prompt, whole = _ids(tokenizer, row["prompt"]), _ids(tokenizer, _whole(row, tokenizer))
    completion = _ids(tokenizer, _whole(row, tokenizer)[len(row["prompt"]) :], False)
    if tokenizer.decode(prompt + completion) != tokenizer.decode(whole):
        # The tokenizer puts a mark before every text: keep its own tokens from where they differ.
        same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), 0)
        prompt, completion = whole[:same], whole[same:]
    mask = [0] * len(prompt) + [1] * len(completion)
    return {"input_ids": prompt + completion, "completion_mask": mask}


def _whole(row: dict[str, Any], tokenizer: Any) -> str:
    text, end = row["prompt"] + row["completion"], tokenizer.eos_token
    return text if row["completion"].endswith(end) else text + end


def _ids(tokenizer: Any, text: str, add_special_tokens: bool = True) -> list[int]:
    return list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
