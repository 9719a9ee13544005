"""Supervised fine-tuning: trains a language model to write the completions of a dataset.

Loss: the mean of -log p(token | tokens before it) over completion tokens; for rows of plain text or
whole conversations, over all tokens, as TRL does (assistant_only_loss narrows it).

Data: prompt + completion (text or messages), messages, or text.
Writes final/, metrics.jsonl, samples.jsonl and summary.json with train_loss, eval_loss, perplexity
and base_perplexity of the test rows.

    python -m recipes.sft --config configs/quickstart/sft.yaml
    accelerate launch --num_processes 2 -m recipes.sft --config configs/quickstart/sft.yaml

Source: Ouyang et al., Training language models to follow instructions, 2022, section 3.5, step 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.problems import named_columns
from recipes.lib.data.streaming import Rows, load_rows
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import TemplateArguments, check_template
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.energy import EnergyArguments
from recipes.lib.runs.folder import RunArguments

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTConfig

COLUMN_SETS = (("prompt", "completion"), ("messages",), ("text",))


@dataclass(kw_only=True)
class SFTArguments(RunArguments, DataArguments, TemplateArguments, PlanArguments, EnergyArguments):
    """Keys of the recipe beside those of SFTConfig and ModelConfig."""

    FEEDBACK: ClassVar[tuple[str, ...]] = ("prompt_completion",)

    global_batch_size: int | None = option(
        None, "Rows in one optimizer step over all processes; sets accumulation."
    )
    num_samples: int = option(5, "Test prompts to complete at the end, for samples.jsonl.")
    max_new_tokens: int = option(64, "Longest completion in samples.jsonl, in tokens.")
    temperature: float = option(0.0, "Of the completions in samples.jsonl; 0 is greedy.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig, SFTConfig

    return SFTArguments, SFTConfig, ModelConfig


def columns_of(dataset: Dataset) -> tuple[str, ...]:
    """The columns that make the dataset one of TRL's SFT formats.

    Raises:
        UserError: It has none of those formats.
    """
    for columns in COLUMN_SETS:
        if set(columns) <= set(dataset.column_names):
            return columns
    raise UserError(
        f"dataset_name: the columns are {', '.join(named_columns(dataset))}; SFT needs prompt and "
        "completion, or messages, or text."
    )


def load_text_rows(script: SFTArguments, training: SFTConfig) -> Rows:
    """Load training and test rows; the column dataset_text_field is text from here on.

    Raises:
        UserError: As load_rows.
    """
    script.text_field, training.dataset_text_field = training.dataset_text_field, "text"
    return load_rows(script, training, columns_of)


def make_trainer(config: Config, tokenizer: Any, rows: Rows) -> Any:
    """TRL's trainer on the model, with LoRA where it is asked for; its rows fit the model."""
    from trl import SFTTrainer

    from recipes.lib.config.library_checks import check_dataset_kwargs
    from recipes.lib.data.tokenization import keep_boundary
    from recipes.lib.recipe import spine

    training = config.training
    if training.eval_packing is None:
        training.eval_packing = False  # perplexity is that of whole rows
    is_text = isinstance(rows.known[0][columns_of(rows.known)[0]], str)
    check_dataset_kwargs(training.dataset_kwargs, is_text, tokenizer)
    is_apart = is_text and columns_of(rows.known) == COLUMN_SETS[0]
    prepare = partial(keep_boundary, tokenizer=tokenizer) if is_apart else None
    return spine.make_row_trainer(SFTTrainer, config, tokenizer, rows, prepare)


def checked_tokenizer(config: Config, train: Dataset) -> Any:
    """The model's tokenizer, which can render the rows.

    Raises:
        UserError: There is none, or it lacks a chat template where the rows hold messages.
    """
    from recipes.lib.recipe.spine import policy_tokenizer

    path = config.training.chat_template_path
    tokenizer = policy_tokenizer(config, path)
    check_template(train[0], columns_of(train)[0], bool(tokenizer.chat_template or path))
    return tokenizer


def test_perplexity(trainer: Any) -> float | None:
    """Perplexity of the test rows, on the very tokens that the trainer made of them."""
    from recipes.lib.distributed.shards import unsharded_model
    from recipes.lib.models.likelihood import perplexity

    rows = trainer.eval_dataset
    if rows is None or "input_ids" not in rows.column_names:  # made as it is read, with pictures
        return None
    batch_size = trainer.args.per_device_eval_batch_size
    with unsharded_model(trainer) as model:
        return perplexity(model, rows["input_ids"], rows["labels"], batch_size)


def write_samples(trainer: Any, test: Dataset | None, script: SFTArguments, folder: Any) -> None:
    """Write what the model says to prompts of test rows; all processes call it."""
    from recipes.lib.distributed.shards import does_main_work, unsharded_model
    from recipes.lib.evaluation.held_out import held_out_samples

    with unsharded_model(trainer) as trained:
        if test is not None and does_main_work(trainer):
            samples = held_out_samples(
                trained,
                trainer.processing_class,
                test,
                num_samples=script.num_samples,
                max_new_tokens=script.max_new_tokens,
                temperature=script.temperature,
            )
            if is_main_process():
                folder.write_samples(samples)


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, evaluate, save.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: train_loss, eval_loss and the perplexities in nats per token and its exp.

    Raises:
        UserError: The data, the model or the run folder cannot be used.
    """
    from recipes.lib.recipe import spine

    script, training = config.script, config.training
    spine.check_start(config)
    spine.look_for_pictures(config)
    rows = load_text_rows(script, training)
    check_plan(config, rows.test is not None)
    trainer = make_trainer(config, checked_tokenizer(config, rows.known), rows)
    folder = spine.start_run(config, trainer, {"loss": "loss", "mean_token_accuracy": "accuracy"})
    base = test_perplexity(trainer)
    rows.begin()
    summary = spine.train(trainer, folder)
    spine.note_guessing(trainer, math.log(trainer.model.config.get_text_config().vocab_size))
    if rows.test is not None:
        summary |= {"eval_loss": trainer.evaluate()["eval_loss"]}
        summary |= {"perplexity": test_perplexity(trainer), "base_perplexity": base}
    spine.save_final(trainer, folder)
    write_samples(trainer, rows.test, script, folder)
    return spine.finish(folder, config, summary)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("sft", argv)


if __name__ == "__main__":
    raise SystemExit(main())
