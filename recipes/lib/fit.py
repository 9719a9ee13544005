"""Whether the rows that one of TRL's trainers made fit the model: length, template, tokens."""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from recipes.lib.chat_templates import check_bos, check_conversation
from recipes.lib.errors import UserError
from recipes.lib.vocabulary import untrained_tokens


def check_fit(trainer: Any, row: dict[str, Any]) -> None:
    """Check what a trainer is about to train on.

    Args:
        trainer: TRL's SFTTrainer or RewardTrainer, made.
        row: The first row of the data as it was given.

    Raises:
        UserError: A row is longer than the model's context, the chat template does not fit, or
            special tokens of the data have embeddings that were never trained and will not be.
    """
    seen = next(iter(trainer.train_dataset), None)
    if seen is None:
        raise UserError(
            f"max_length={trainer.args.max_length}: no training row is left under this limit; "
            "raise it."
        )
    columns = [name for name in ("input_ids", "chosen_ids", "rejected_ids") if name in seen]
    _check_context(trainer, columns)
    tokenizer = trainer.processing_class
    if isinstance(row.get("chosen"), list):
        check_bos(tokenizer, seen[columns[0]])
    elif (messages := _messages(row)) is not None:
        kwargs = row.get("chat_template_kwargs") or {}
        check_conversation(tokenizer, messages, getattr(trainer, "chat_template", None), **kwargs)
    _check_tokens(trainer, {token for name in columns for token in seen[name]})


def _messages(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    if isinstance(row.get("messages"), list):
        return list(row["messages"])
    if isinstance(row.get("completion"), list):
        return list(row["prompt"]) + list(row["completion"])
    return None


def _check_context(trainer: Any, columns: list[str]) -> None:
    config = trainer.model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    limit = trainer.args.max_length
    if context is None or (limit is not None and limit <= context):
        return
    if not hasattr(trainer.train_dataset, "__len__"):
        raise UserError(
            f"max_length={limit}: rows of a stream cannot be measured before the run, and the "
            f"model's context has {context} tokens; set max_length to {context} or less."
        )
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        for name in columns if dataset is not None else ():
            longest = _longest(dataset, name)
            if longest > context:
                raise UserError(
                    f"max_length={limit}: the longest row has {longest} tokens "
                    f"and the model's context {context}; set max_length to {context} or less."
                )


def _longest(dataset: Any, name: str) -> int:
    batches = dataset.with_format("numpy", columns=[name]).iter(1000)
    return max((len(row) for batch in batches for row in batch[name]), default=0)


def _check_tokens(trainer: Any, tokens: set[int]) -> None:
    """Special tokens that an adapter would have to learn, and cannot: embeddings are frozen."""
    model, tokenizer = trainer.model, trainer.processing_class
    if not isinstance(model, PeftModel):
        return
    weight = model.get_input_embeddings()
    if any(parameter.requires_grad for parameter in weight.parameters()):
        return
    special = set(tokenizer.get_added_vocab().values())
    used = tokens & special
    untrained = untrained_tokens(model, tokenizer, used) if used else []
    if untrained:
        raise UserError(
            f"lora_modules_to_save is missing: the data uses {', '.join(untrained)}, whose "
            "embeddings were never trained, and an adapter leaves them as they are; set "
            "lora_modules_to_save to the model's embeddings (such as embed_tokens) and its "
            "lm_head, or choose a template without these tokens."
        )
