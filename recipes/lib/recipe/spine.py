"""Steps that the recipes have in common, from the policy and its trainer to the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.data.prompts import prompt_token_ids
from recipes.lib.data.row_watch import RowWatch
from recipes.lib.data.streaming import Rows
from recipes.lib.data.tokenizer_fit import fit_rows
from recipes.lib.distributed.processes import broadcast_from_main, is_main_process
from recipes.lib.distributed.shards import save_unsharded
from recipes.lib.doctor.checkup import refuse
from recipes.lib.errors import FaultError, UserError, note
from recipes.lib.evaluation.win_rate import pair_accuracy
from recipes.lib.models.chat_template import (
    TEMPLATE_KEY,
    read_template,
    refuse_new_tokens,
    set_chat_template,
)
from recipes.lib.models.folders import is_local
from recipes.lib.models.policies import load_policy, lora_config
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.models.vision import adapt_language_alone, load_processor, reads_pictures
from recipes.lib.runs.checkpoints import refuse_broken, refuse_stateless
from recipes.lib.runs.files import read_jsonl
from recipes.lib.runs.folder import Run, check_folder, folder_of, is_run, open_run
from recipes.lib.runs.lineage import write_lineage
from recipes.lib.runs.lock import refuse_if_locked
from recipes.lib.runs.pickles import check_checkpoint
from recipes.lib.runs.resume import stored_values
from recipes.lib.trainers import progress
from recipes.lib.trainers.batch_sizes import set_accumulation
from recipes.lib.trainers.energy import card_meter, told_energy
from recipes.lib.trainers.row_fit import account_for_rows, check_fit, with_row_numbers
from recipes.lib.trainers.trl import make_trl_trainer

NUM_AVERAGED = 3  # logs whose mean the summary repeats
EVALUATE_AT = 0.25  # of the steps, where test rows are held out by default


def policy_tokenizer(config: Config, template_path: str | None = None) -> Any:
    """The model's tokenizer, with the chat template of the configuration.

    Raises:
        UserError: There is none, or the template is none.
    """
    model = config.model
    tokenizer = load_tokenizer(
        model.model_name_or_path or "",
        revision=model.model_revision,
        trust_remote_code=config.training.trust_remote_code,
    )
    set_chat_template(tokenizer, config.script.chat_template, template_path)
    if config.script.reads_pictures and not (config.script.chat_template or template_path):
        trusted = config.training.trust_remote_code
        own = load_processor(model, None, trust_remote_code=trusted).chat_template
        tokenizer.chat_template = own or tokenizer.chat_template
    return tokenizer


def look_for_pictures(config: Config) -> None:
    """Have the rows keep their pictures, where the model reads them and they are no stream."""
    script = config.script
    trusted = config.training.trust_remote_code
    is_seen = reads_pictures(config.model, trust_remote_code=trusted)
    script.reads_pictures = is_seen and not script.streaming


def make_trainer(
    trainer_class: Any, config: Config, tokenizer: Any, train: Any, test: Any, **arguments: Any
) -> Any:
    """One of TRL's trainers; on the policy, with LoRA where it is asked for, if no model is given.

    Raises:
        UserError: The model cannot be loaded, or TRL refuses an argument.
    """
    trusted = config.training.trust_remote_code
    if "model" not in arguments:
        arguments["peft_config"] = lora_config(config.model, "CAUSAL_LM")
        arguments["model"] = load_policy(
            config.model, trust_remote_code=trusted, shows_pictures=config.script.reads_pictures
        )
    if config.script.reads_pictures:
        adapt_language_alone(arguments["model"], arguments.get("peft_config"))
        tokenizer = load_processor(config.model, tokenizer, trust_remote_code=trusted)
    return make_trl_trainer(
        trainer_class,
        model_args=config.model,
        args=config.training,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        **arguments,
    )


def make_row_trainer(
    trainer_class: Any,
    config: Config,
    tokenizer: Any,
    rows: Rows,
    prepare: Callable[[Any, Any], Any] | None = None,
    **arguments: Any,
) -> Any:
    """One of TRL's trainers that learn from rows; the rows fit the tokenizer and the model.

    Args:
        trainer_class: TRL's class.
        config: The parsed configuration.
        tokenizer: The model's.
        rows: What it learns from; changed to what fits.
        prepare: What is done to rows before TRL tokenizes them; it gets rows that are known, too.
        arguments: Further arguments of the class.

    Raises:
        UserError: As of `make_trainer`; or rows do not fit.
    """
    path = getattr(config.training, TEMPLATE_KEY, None)
    template = tokenizer.chat_template if path is None else read_template(path)
    if path is not None:
        trusted = config.training.trust_remote_code
        refuse_new_tokens(config.model, tokenizer, path, trust_remote_code=trusted)
    pictured = config.script.reads_pictures  # whose template wants contents in parts
    fit_rows(rows, tokenizer, None if pictured else template, config.script)
    if rows.stream is not None or getattr(config.training, "packing", False):
        watch = RowWatch(rows, tokenizer, template, config.training, config.script)
        rows.known = rows.known.select([n for n, row in enumerate(rows.known) if watch.sees(row)])
        if not len(rows.known):
            label = config.script.label
            raise UserError(f"{label}: every row is bad; mend the data, or raise max_length.")
        in_stream = rows.stream is not None
        rows.train = rows.train.filter(watch.sees) if in_stream else rows.known
    splits = [(rows.train, rows.known), (rows.test, rows.test)]
    train, test = (
        with_row_numbers(prepare(some, known) if prepare and some is not None else some)
        for some, known in splits
    )
    trainer = make_trainer(trainer_class, config, tokenizer, train, test, **arguments)
    account_for_rows(trainer, rows, config.script.on_bad_rows)
    check_fit(trainer, rows.known[0])
    return trainer


def make_preference_trainer(trainer_class: Any, config: Config, rows: Rows) -> Any:
    """TRL's DPO or KTO trainer on the policy."""
    tokenizer, row = policy_tokenizer(config), rows.known[0]
    # Refuses messages without a template.
    spoken = row["prompt"] if "prompt" in row else row["chosen"]
    if "prompt" not in row and isinstance(spoken, list):
        spoken = spoken[:-1] or spoken  # what stands before the answer
    if not config.script.reads_pictures:
        prompt_token_ids(tokenizer, spoken)
    return make_row_trainer(trainer_class, config, tokenizer, rows)


def check_start(config: Config) -> None:
    """Check batch and folder; decide on test rows where the user leaves them open.

    A run that is resumed keeps those that it had, one of an older version none.

    Raises:
        UserError: As `set_accumulation` and `check_folder`.
    """
    script, values, folder = config.script, config.values, folder_of(config)
    set_accumulation(config.training, script.global_batch_size)
    if "test_fraction" not in values:
        named = values.get("resume_from_checkpoint")
        folder = Path(named).parent if named else folder
        resumes = (script.resume or named) and is_run(folder)
        stored = broadcast_from_main(lambda: stored_values(folder) if resumes else None)
        is_new = stored is None and not named
        script.holds_out = is_new and values.get("eval_strategy") != "no"
        if stored and "eval_strategy" in stored and isinstance(stored.get("test_fraction"), int):
            script.test_fraction = stored["test_fraction"]
            _keep_test_rows(config)
    check_folder(config)


def _keep_test_rows(config: Config) -> None:
    """Have test rows that are held out by default in the run's keys, and evaluate on them."""
    values = config.values
    values["test_fraction"] = config.script.test_fraction
    if "eval_strategy" not in values:
        values["eval_strategy"] = config.training.eval_strategy = "steps"
        values.setdefault("eval_steps", EVALUATE_AT)
        config.training.eval_steps = values["eval_steps"]


def start_run(config: Config, trainer: Any, shown: dict[str, str]) -> Run:
    """Take the run folder; the trainer writes metrics.jsonl there, and shows some on its bar.

    Args:
        config: The parsed configuration.
        trainer: The trainer.
        shown: Names of metrics, with the short name that stands on the bar.

    Returns:
        The run.

    Raises:
        UserError: As `open_run`.
    """
    if trainer.args.push_to_hub:
        _check_base(trainer)
    if getattr(config.script, "holds_out", False) and config.script.test_fraction:
        _keep_test_rows(config)
    run = open_run(config)
    trainer.start = config.start
    is_asked = config.recipe == "ppo" or "logging_steps" in config.values
    progress.add_run_callbacks(trainer, run.path, config.recipe, shown, is_asked)
    run.meter = trainer.meter = card_meter()
    trainer.add_callback(run.meter)
    return run


def _check_base(trainer: Any) -> None:
    """Refuse to train what could not be pushed: an adapter on a base that nobody else has."""
    parts = (getattr(part, "peft_config", {}) for part in trainer.model.modules())
    bases = {str(adapter.base_model_name_or_path) for part in parts for adapter in part.values()}
    for base in filter(is_local, bases):
        raise UserError(
            f"push_to_hub=true: the adapter's base {base} is a folder of this machine, and nobody "
            "else could load it; leave it out, and push what rlhf merge makes."
        )


def train(trainer: Any, run: Run) -> dict[str, Any]:
    """Train, from the run's checkpoint or the one that the user named.

    Returns:
        train_loss, the mean over all steps, and what became of rows that are too long.
    """
    checkpoint = checkpoint_of(run, trainer.args)
    loss = float(trainer.train(resume_from_checkpoint=checkpoint).training_loss)
    run.seconds_before = trainer.seconds_before
    return {"train_loss": loss} | getattr(trainer, "row_counts", {})


def last_logs(run: Run, kept: dict[str, str]) -> dict[str, float]:
    """Means over the last logs that have a score, and the first score to compare with.

    Args:
        run: The run, with its metrics.
        kept: Metrics, the score first, and what the summary calls them.

    Returns:
        first_scores and those that were logged.
    """
    score = next(iter(kept))
    rows = [row for row in read_jsonl(run.path / "metrics.jsonl") if row.get(score) is not None]
    said = {name: [row[name] for row in rows[-NUM_AVERAGED:] if name in row] for name in kept}
    means = {kept[name]: sum(values) / len(values) for name, values in said.items() if values}
    return {"first_scores": rows[0][score]} | means if rows else {}


def note_guessing(trainer: Any, guess: float) -> None:
    """Say that a training has ended with a higher loss than guessing has."""
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if losses and losses[-1] > guess:
        note(
            f"loss {losses[-1]:.3g}: at the end it is above that of guessing ({guess:.3g}); try a "
            "lower learning_rate, or look at the rows with rlhf data."
        )


def checkpoint_of(run: Run, training: Any) -> str | None:
    """The checkpoint to go on from: the run's newest, or the one that the user named.

    Args:
        run: The opened run.
        training: A TrainingArguments.

    Returns:
        Its folder; None for a fresh start.

    Raises:
        UserError: It holds something that could run code.
    """
    named = run.checkpoint or training.resume_from_checkpoint
    if not named:
        return None
    # The run's own was read to find it, and one that the user named is read now.
    refuse = refuse_stateless if run.checkpoint else refuse_broken
    broadcast_from_main(lambda: refuse(Path(named)))
    check_checkpoint(Path(named), run.is_trusted)
    return str(named)


def save_final(trainer: Any, run: Run) -> None:
    """Save model and tokenizer to final/, whole or not at all.

    Args:
        trainer: A transformers Trainer.
        run: Its run.
    """
    broadcast_from_main(lambda: refuse_if_locked(run.path))  # it may have been moved
    try:
        with save_unsharded(trainer):
            trainer.save_model(str(run.partial), _internal_call=True)
    except Exception:
        shutil.rmtree(run.partial, ignore_errors=True)  # half a model is none
        raise
    trainer.accelerator.wait_for_everyone()
    if is_main_process():
        run.publish_final()
    trainer.accelerator.wait_for_everyone()


def finish(
    run: Run, config: Config, summary: dict[str, Any], check: Any = dict, **facts: Any
) -> dict[str, Any]:
    """Write lineage.json, summary.json and then the report; push the run where that is asked.

    Args:
        run: The run.
        config: The parsed configuration.
        summary: The numbers of the run.
        check: Says what check.json holds of what was trained; one at fault is not pushed.
        facts: Further facts of the lineage; of a recipe without a ModelConfig also model and data.

    Returns:
        The summary, with the recipe and the seconds.

    Raises:
        UserError: The run is not on the Hub.
        FaultError: The reward model is at fault; the run is whole.
    """
    summary = {"recipe": config.recipe} | summary
    summary["seconds"] = round(run.seconds_before + time.monotonic() - config.start, 1)
    if run.meter is not None:
        processes = config.training.world_size
        summary |= told_energy(run.meter, config.script, summary["seconds"], processes)
    if is_main_process():
        # Late, because it imports matplotlib.
        from recipes.lib.report.page import write_report

        script = config.script
        if config.model is not None:  # a recipe that trains
            facts |= {"model": config.model.model_name_or_path, "data": script.data_names()}
            facts["revision"] = config.model.model_revision
            facts["trust_remote_code"] = config.training.trust_remote_code
        write_lineage(run.path, config.recipe, **facts)
        run.write_summary(summary)
        report = check()
        write_report(run.path)
        beside = " (the run is whole; --skip_check true goes on)"
        try:
            refuse(report, str(run.path), beside)
        except FaultError as fault:
            fault.summary = summary
            raise
        if getattr(config.training, "push_to_hub", False):
            _push(run, config.training)
    return summary


def _push(run: Run, training: Any) -> None:
    from recipes.lib.publishing.bundle import gather
    from recipes.lib.publishing.push import Repository, push

    name = training.hub_model_id or run.path.absolute().name
    place = Repository(name, training.hub_private_repo, training.hub_revision)
    bundle = gather(str(run.path), name)
    try:
        bundle.refuse()
        push(bundle, place, "Model save")
    except UserError as error:
        open_to_all = "" if training.hub_private_repo else " --private false"
        raise UserError(
            f"push_to_hub=true: the run is whole in {run.path} and not on the Hub ({error}); then "
            f"rlhf push {run.path} --repo {name}{open_to_all}."
        ) from error
    note(f"{place.name} is whole at commit {place.commit}.")


def pair_numbers(rows: list[dict[str, Any]], test: Any) -> dict[str, float]:
    """What the scores of pairs say: their accuracy, its ceiling where it is known, the mean margin.

    Args:
        rows: With score_chosen and score_rejected.
        test: The pairs; `noise` is the probability that a label is wrong.

    Returns:
        Accuracies in 0..1, the margin in units of the scores.
    """
    chosen, rejected = ([row[f"score_{side}"] for row in rows] for side in ("chosen", "rejected"))
    numbers = {"accuracy": pair_accuracy(chosen, rejected)}
    if "noise" in test.column_names:
        numbers["accuracy_ceiling"] = 1 - sum(test["noise"]) / len(test)
    return numbers | {"margin": (sum(chosen) - sum(rejected)) / len(rows)}
