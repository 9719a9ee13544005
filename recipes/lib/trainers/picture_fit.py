"""Whether rows with pictures fit the model: messages, as many tokens as there is room for.

TRL makes their tokens as they are read, in the middle of a run; so each row is made once before it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recipes.lib.data.problems import Problem, places_of, refuse_or_drop
from recipes.lib.data.prompts import context_length
from recipes.lib.errors import UserError, first_line
from recipes.lib.pictures.files import IMAGES

PREPARATION_ERRORS = (ValueError, KeyError, TypeError, IndexError, NotImplementedError)


def fit_pictured(trainer: Any, rows: Any, on_bad_rows: str) -> Any:
    """Rows of SFT or DPO that fit the model with their pictures.

    Args:
        trainer: TRL's trainer, made.
        rows: Its training or test rows.
        on_bad_rows: "refuse" or "drop" those that are too long.

    Returns:
        The rows.

    Raises:
        UserError: A row is no conversation, cannot be prepared, or is too long.
    """
    _refuse_plain(rows)
    collate = replace(trainer.data_collator, max_length=None)
    limits = [getattr(trainer.args, "max_length", None), context_length(trainer.model.config)]
    limit = min((one for one in limits if one is not None), default=None)
    what = f"more tokens with its pictures than max_length or the model's context ({limit}),"
    long, places = Problem(what), places_of(rows)
    for number, row in enumerate(rows):
        try:
            length = int(collate([dict(row)])["attention_mask"].sum(-1).max())
        except PREPARATION_ERRORS as error:
            raise _unprepared(places[number], error) from error
        if limit is not None and length > limit:
            long.rows.append(number)
    out = refuse_or_drop("dataset_name", [long] if long.rows else [], places, on_bad_rows)
    return rows.select([n for n in range(len(rows)) if n not in out]) if out else rows


def check_pictured_prompts(trainer: Any, rows: Any) -> None:
    """Check prompts of GRPO with their pictures.

    Args:
        trainer: TRL's trainer, made.
        rows: Its training or test rows.

    Raises:
        UserError: A prompt is plain text, has no picture, cannot be prepared, or leaves no room for
            a completion.
    """
    from trl.data_utils import prepare_multimodal_messages

    _refuse_plain(rows)
    processor, places = trainer.processing_class, places_of(rows)
    context = context_length(trainer.model.config)
    for number, row in enumerate(rows):
        if not row[IMAGES]:
            raise UserError(
                f"dataset_name: {places[number]} has no picture, and others do; GRPO wants one in "
                "every row."
            )
        try:
            asked = prepare_multimodal_messages(row["prompt"], images=row[IMAGES])
            made = processor.apply_chat_template(
                [asked], add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except PREPARATION_ERRORS as error:
            raise _unprepared(places[number], error) from error
        length = len(made["input_ids"][0]) + (trainer.args.max_completion_length or 1)
        if context is not None and length > context:
            raise UserError(
                f"max_completion_length={trainer.args.max_completion_length}: {places[number]} "
                f"has {length} tokens with its pictures and a completion, and the model's context "
                f"{context}; lower it, or leave that row out."
            )


def _refuse_plain(rows: Any) -> None:
    spoken = next((name for name in ("messages", "prompt") if name in rows.column_names), None)
    if spoken is None or not isinstance(rows[0][spoken], list):
        raise UserError(
            f"dataset_name: rows with {IMAGES} have to be messages, in prompt and completion, in "
            "messages, or in prompt, chosen and rejected."
        )


def _unprepared(place: str, error: Exception) -> UserError:
    return UserError(
        f"dataset_name: {place} cannot be prepared with its pictures ({first_line(error)}); mend "
        "it, or name another chat template."
    )
