"""Whether the rows that a trainer made fit the model: length, template, tokens, loss.

TRL cuts rows at max_length and leaves out those whose completion is cut off, without a word; here
they are told and counted, and rows in which nothing is left to learn from are bad rows.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import Trainer
from trl.data_utils import prepare_multimodal_messages

from recipes.lib.data.formats import format_of
from recipes.lib.data.problems import PLACE, places_of
from recipes.lib.data.prompts import Prompts, check_context, context_length, tokenize_prompts
from recipes.lib.data.row_checks import iterate_rows
from recipes.lib.data.row_watch import CUT, SILENT, fate_of
from recipes.lib.data.tokenization import Tokens, tokenize_row
from recipes.lib.errors import UserError, note
from recipes.lib.models.chat_template import TEMPLATE_KEY, check_bos, check_conversation
from recipes.lib.models.tokenizers import untrained_tokens
from recipes.lib.pictures.files import IMAGES
from recipes.lib.trainers.picture_fit import check_pictured_prompts, fit_pictured

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
    if IMAGES in first:
        spoken = prepare_multimodal_messages(_messages(row), images=[])
        words, template = tokenizer.tokenizer, tokenizer.chat_template
        check_conversation(words, spoken, template, {}, words.name_or_path)
        return
    before = [PROMPT] if PROMPT in first else []
    sides = [name for name in SIDE_COLUMNS if name in first]
    _check_context(trainer, before, sides)
    ids = [token for name in (*before, sides[0]) for token in first[name]]
    model_name = None if hasattr(trainer.args, TEMPLATE_KEY) else tokenizer.name_or_path
    if not before and "chosen_ids" in first:  # a reward model is asked nothing
        if isinstance(row.get("prompt") or row.get("chosen"), list):
            check_bos(tokenizer, ids, model_name)
    elif (messages := _messages(row)) is not None:
        kwargs = dict(row.get("chat_template_kwargs") or {})
        template = getattr(trainer, "chat_template", None)
        check_conversation(tokenizer, messages, template, kwargs, model_name)
    if isinstance(trainer.model, PeftModel):
        _check_tokens(trainer.model, tokenizer, _used_tokens(rows, [*before, *sides]))


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
    _check_tokens(model, tokenizer, set().union(*prompts.ids))


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
            _refuse_open_prompts(rows)
            if IMAGES in rows.column_names:
                check_pictured_prompts(trainer, rows)
                continue
            prompts = tokenize_prompts(rows, tokenizer, None, args.chat_template_kwargs)
            check_context(prompts, trainer.model.config, args.max_completion_length)
            check_prompts(trainer.model, tokenizer, prompts)


def _refuse_open_prompts(rows: Any) -> None:
    spoken = (prompt for prompt in rows["prompt"] if not isinstance(prompt, str))
    opened = [row for row, prompt in enumerate(spoken) if prompt[-1]["role"] == "assistant"]
    if opened:
        place = places_of(rows)[opened[0]]
        raise UserError(
            f"dataset_name: the prompt of {place} ends with an assistant's turn ({len(opened)} "
            "such rows), which TRL would close and not go on with; leave that turn out, or train "
            "with ppo, which goes on with it."
        )


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


def _used_tokens(rows: Any, names: list[str]) -> set[int]:
    """Ids of all rows; of a stream those of the first."""
    if not hasattr(rows, "__len__"):
        return {token for name in names for token in next(iter(rows))[name]}
    used: set[int] = set()
    for row in iterate_rows(rows, names):
        used.update(*row.values())
    return used


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
        The dataset with a column `ROW_NUMBER`.
    """
    if not hasattr(rows, "__len__"):
        return rows
    return rows.add_column(ROW_NUMBER, list(range(len(rows))))


def account_for_rows(trainer: Trainer, rows: Any, on_bad_rows: str) -> None:
    """Say which rows are cut or left out; those that nothing can be learned from are bad rows.

    Args:
        trainer: TRL's SFT, Reward, DPO or KTO trainer, made of numbered rows; it gets `row_counts`,
            numbers of training rows for the summary, and is rid of the numbers and the bad rows.
        rows: The same rows as they were given.
        on_bad_rows: "refuse" or "drop".

    Raises:
        UserError: There are bad rows and they are not to be dropped.
    """
    splits = (("train_dataset", rows.train, "training"), ("eval_dataset", rows.test, "test"))
    for name, given, word in splits:
        made = getattr(trainer, name)
        if made is None:
            continue
        if ROW_NUMBER not in (made.column_names or ()):  # packed or streamed
            if word == "training":
                trainer.row_counts = rows.counts
            continue
        if IMAGES in made.column_names:
            made = fit_pictured(trainer, made, on_bad_rows)
        fates, places = _fates(trainer, made, given), places_of(given)
        good = [row for row, number in enumerate(made[ROW_NUMBER]) if fates[number] != SILENT]
        made = made if len(good) == len(made) else made.select(good)
        ours = {ROW_NUMBER, PLACE}.intersection(made.column_names)
        setattr(trainer, name, made.remove_columns(sorted(ours)))
        numbers = {number for number, fate in fates.items() if fate != SILENT}
        gone = [number for number in range(len(given)) if number not in numbers]
        cut = [number for number, fate in fates.items() if fate == CUT]
        if gone and numbers:
            where = f"in {len(gone)} of {len(given)} {word} rows, first in {places[gone[0]]}"
            _tell_gone(trainer, where, on_bad_rows)
        if cut:
            of_all = f"{trainer.args.max_length}: {len(cut)} of {len(given)} {word} rows"
            note(f"max_length={of_all} are cut, first {places[min(cut)]}.")
        if word == "training":
            trainer.row_counts = {"num_rows_cut": len(cut), "num_rows_left_out": len(gone)}


def _tell_gone(trainer: Trainer, where: str, on_bad_rows: str) -> None:
    limit = trainer.args.max_length
    key = "dataset_name" if limit is None else f"max_length={limit}"
    if type(trainer.args).__name__ == "RewardConfig":  # TRL leaves them out
        note(f"{key}: a side is longer {where}; they are left out.")
        return
    what = f"no token to learn from is left {where}"
    if on_bad_rows == "drop":
        note(f"{key}: {what}; they are dropped.")
        return
    remedy = "mend them" if limit is None else "raise it"
    raise UserError(f"{key}: {what}; {remedy}, or set on_bad_rows=drop.")


def _fates(trainer: Trainer, made: Any, given: Any) -> dict[int, str]:
    """What becomes of the rows that TRL has made and not left out, by their number."""
    args, columns = trainer.args, made.column_names
    fates = dict.fromkeys(made[ROW_NUMBER], "")
    if "labels" in columns:
        for row in iterate_rows(made, [ROW_NUMBER, "input_ids", "labels"]):
            ids, number = row["input_ids"], row[ROW_NUMBER]
            found = [Tokens("", ids, [label != IGNORED for label in row["labels"]])]
            if len(ids) == args.max_length:  # cut already, or as long as that
                found = tokenize_row(given[number], format_of(given), trainer.processing_class)
            fates[number] = fate_of(found, args)
    elif PROMPT in columns:
        sides = [name for name in SIDE_COLUMNS[1:4] if name in columns]
        for row in iterate_rows(made, [ROW_NUMBER, PROMPT, *sides]):
            prompt, others = row[PROMPT], [row[side] for side in sides]
            start = [False] * len(prompt)
            found = [Tokens("", prompt + ids, start + [True] * len(ids)) for ids in others]
            fates[row[ROW_NUMBER]] = fate_of(found, args)
    return fates
