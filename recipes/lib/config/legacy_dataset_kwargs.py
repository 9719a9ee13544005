"""What earlier SFT files put into dataset_kwargs, which TRL no longer reads."""

from __future__ import annotations

from typing import Any

from recipes.lib.errors import UserError, note

KNOWN = "skip_prepare_dataset"
JOINED = "append_concat_token"  # whether an EOS token stood between packed rows
SPECIAL = "add_special_tokens"  # whether a tokenizer put its BOS before text


def check_dataset_kwargs(kwargs: Any, is_text: bool, tokenizer: Any) -> None:
    """Say what becomes of dataset_kwargs that TRL would ignore without a word.

    Args:
        kwargs: dataset_kwargs of an SFTConfig.
        is_text: Whether the rows are text; messages have the tokens of their chat template alone.
        tokenizer: The model's.

    Raises:
        UserError: A key is not known, or leaving it out would change the tokens of the rows.
    """
    if not isinstance(kwargs, dict):
        return
    unknown = sorted(set(kwargs) - {KNOWN, JOINED, SPECIAL})
    if unknown:
        raise UserError(f"dataset_kwargs: {unknown[0]} is not known; TRL knows {KNOWN} alone.")
    if JOINED in kwargs:
        note(f"dataset_kwargs: {JOINED} is left out: each row ends with one EOS token.")
    if SPECIAL not in kwargs:
        return
    with_them, without = (
        tokenizer("a", add_special_tokens=on)["input_ids"] for on in (True, False)
    )
    if is_text and not kwargs[SPECIAL] and with_them != without:
        first = tokenizer.convert_ids_to_tokens(with_them)[0]
        raise UserError(
            f"dataset_kwargs: {SPECIAL}=false is no longer in TRL, and text gets the tokens of its "
            f"tokenizer, such as {first}; leave it out, or write the rows as messages."
        )
    same = "text has the tokens of its tokenizer" if is_text else "the chat template writes them"
    note(f"dataset_kwargs: {SPECIAL} is left out: {same}.")
