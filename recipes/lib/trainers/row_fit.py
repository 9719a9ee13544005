"""Whether the rows that a trainer made fit the model: length, template, tokens, loss.

TRL cuts rows of SFT at max_length and leaves out those whose completion is cut off, without a word;
here rows in which no token is left to learn from are refused, or dropped and counted.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import Trainer

from recipes.lib.data.prompts import Prompts, check_context, context_length, tokenize_prompts
from recipes.lib.errors import UserError, note
from recipes.lib.models.chat_template import TEMPLATE_KEY, check_bos, check_conversation
from recipes.lib.models.tokenizers import untrained_tokens

ROW_NUMBER = "row_number"  # a column that stays with a row through TRL's preparation
BATCH_SIZE = 1000  # rows at a time
IGNORED = -100  # label of a token without loss


PROMPT = "prompt_ids"  # before each of the sides, where there is one
SIDE_COLUMNS = ("input_ids", "chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids")


def check_fit(trainer: Trainer, row: dict[str, Any]) -> None:
    """Check what a trainer is about to train on.

    Args:
        trainer: TRL's SFT, Reward, DPO or KTO trainer, made.
        row: The first row of the data as it was given.

    Raises:
        UserError: No row is left, a row is longer than the model's context, the chat template does
            not fit, or special tokens of the data have embeddings that were never trained and will
            not be.
    """
    rows, tokenizer = trainer.train_dataset, trainer.processing_class
    first = next(iter(rows), None)
    if first is None:
        raise UserError(
            f"max_length={trainer.args.max_length}: every training row is longer and dropped; "
            "raise it."
        )
    before = [PROMPT] if PROMPT in first else []
    sides = [name for name in SIDE_COLUMNS if name in first]
    _check_context(trainer, before, sides)
    ids = [token for name in (*before, sides[0]) for token in first[name]]
    model_name = None if hasattr(trainer.args, TEMPLATE_KEY) else tokenizer.name_or_path
    if isinstance(row.get("chosen"), list) and not before:  # a reward model is asked nothing
        check_bos(tokenizer, ids, model_name)
    elif (messages := _messages(row)) is not None:
        kwargs = dict(row.get("chat_template_kwargs") or {})
        template = getattr(trainer, "chat_template", None)
        check_conversation(tokenizer, messages, template, kwargs, model_name)
    used = {token for name in (*before, *sides) for token in first[name]}
    _check_tokens(trainer.model, tokenizer, used)


def check_prompts(model: Any, tokenizer: Any, prompts: Prompts) -> None:
    """Check what a policy is about to be asked.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        prompts: The prompts to train on.

    Raises:
        UserError: The chat template does not fit, or special tokens of the prompts have embeddings
            that were never trained and will not be.
    """
    if isinstance(prompts.data[0]["prompt"], list):
        check_bos(tokenizer, prompts.ids[0], tokenizer.name_or_path)
    _check_tokens(model, tokenizer, set(prompts.ids[0]))


def check_sampling(trainer: Trainer) -> None:
    """Check what TRL's trainers that sample are about to ask; TRL cuts no prompt.

    Args:
        trainer: TRL's RLOO or GRPO trainer, made.

    Raises:
        UserError: As `check_prompts`; or a prompt leaves no room for a completion in the model's
            context.
    """
    args, tokenizer = trainer.args, trainer.processing_class
    for rows in (trainer.train_dataset, trainer.eval_dataset):
        if rows is not None:
            prompts = tokenize_prompts(rows, tokenizer, None, args.chat_template_kwargs)
            check_context(prompts, trainer.model.config, args.max_completion_length)
            check_prompts(trainer.model, tokenizer, prompts)


def _messages(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    if isinstance(row.get("messages"), list):
        return list(row["messages"])
    for side in ("completion", "chosen"):
        if isinstance(row.get(side), list):
            before = row.get("prompt")  # or the side begins with it
            return (list(before) if isinstance(before, list) else []) + list(row[side])
    return None


def _check_context(trainer: Trainer, before: list[str], sides: list[str]) -> None:
    context = context_length(trainer.model.config)
    limit = trainer.args.max_length
    if context is None or (limit is not None and limit <= context):
        return
    if not hasattr(trainer.train_dataset, "__len__"):
        raise UserError(
            f"max_length={limit}: rows of a stream cannot be measured before the run, and the "
            f"model's context has {context} tokens; set max_length to {context} or less."
        )
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        for name in sides if dataset is not None else ():
            longest = _longest(dataset, [*before, name])
            if longest > context:
                raise UserError(
                    f"max_length={limit}: the longest row has {longest} tokens "
                    f"and the model's context {context}; set max_length to {context} or less."
                )


def _longest(dataset: Any, names: list[str]) -> int:
    batches = dataset.with_format("numpy", columns=names).iter(BATCH_SIZE)
    rows = (row for batch in batches for row in zip(*(batch[name] for name in names), strict=True))
    return max((sum(map(len, row)) for row in rows), default=0)


def _check_tokens(model: Any, tokenizer: Any, ids: set[int]) -> None:
    """Special tokens that an adapter would have to learn, and cannot: embeddings are frozen."""
    if not isinstance(model, PeftModel):
        return
    weight = model.get_input_embeddings()
    if any(parameter.requires_grad for parameter in weight.parameters()):
        return
    used = ids & set(tokenizer.get_added_vocab().values())
    untrained = untrained_tokens(model, tokenizer, used) if used else []
    if untrained:
        raise UserError(
            f"lora_modules_to_save is missing: the data uses {', '.join(untrained)}, whose "
            "embeddings were never trained, and an adapter leaves them as they are; set "
            "lora_modules_to_save to the model's embeddings (such as embed_tokens) and its "
            "lm_head, or choose a template without these tokens."
        )


def with_row_numbers(rows: Any) -> Any:
    """Give every row its number.

    Args:
        rows: A dataset; a stream or None is let through, whose rows come too late to be counted.

    Returns:
        The dataset with a column `NUMBER`.
    """
    return rows.add_column(ROW_NUMBER, list(range(len(rows)))) if hasattr(rows, "__len__") else rows


def drop_rows_without_loss(trainer: Trainer, rows: Any, on_bad_rows: str) -> None:
    """Refuse or drop the rows of a trainer that have no loss, and take the numbers away again.

    Args:
        trainer: TRL's SFTTrainer, made of numbered rows.
        rows: The same rows as they were given.
        on_bad_rows: "refuse" or "drop".

    Raises:
        UserError: There are such rows and they are not to be dropped.
    """
    limit = trainer.args.max_length
    for name, given, word in (
        ("train_dataset", rows.train, "training"),
        ("eval_dataset", rows.test, "test"),
    ):
        made = getattr(trainer, name)
        if made is None or ROW_NUMBER not in (made.column_names or ()):
            continue  # packed, streamed or absent
        made = made if limit is not None else _learnable(made)
        setattr(trainer, name, made.remove_columns(ROW_NUMBER))
        kept = set(made[ROW_NUMBER])
        silent = [row for row in range(len(given)) if row not in kept]
        if silent and kept:
            _tell(limit, silent, len(given), word, on_bad_rows)


def _tell(limit: int | None, silent: list[int], total: int, word: str, on_bad_rows: str) -> None:
    key = "dataset_name" if limit is None else f"max_length={limit}"
    what = f"no token to learn from is left in {len(silent)} of {total} {word} rows, first in row"
    where = f"{silent[0]} (counted from 0)"
    if on_bad_rows == "drop":
        note(f"{key}: {what} {where}; they are dropped.")
        return
    remedy = "mend them" if limit is None else "raise it"
    raise UserError(f"{key}: {what} {where}; {remedy}, or set on_bad_rows=drop.")


def _learnable(rows: Any) -> Any:
    """What TRL does where there is a limit: rows whose labels are all masked are left out."""
    labels = rows.with_format("numpy", columns=["labels"])
    has_loss = [
        bool((one != IGNORED).any()) for part in labels.iter(BATCH_SIZE) for one in part["labels"]
    ]
    return rows if all(has_loss) else rows.select([i for i, on in enumerate(has_loss) if on])
