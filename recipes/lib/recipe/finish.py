"""How a training recipe starts its trainer's steps and ends its run: batches, final/, report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from recipes.lib.distributed.processes import from_main, is_main_process
from recipes.lib.distributed.shards import saved_whole
from recipes.lib.runs.checkpoints import check_checkpoint, refuse_broken, refuse_stateless
from recipes.lib.runs.folder import Run
from recipes.lib.trainers.resumable import STAGED


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
    from_main(lambda: refuse(Path(named)))
    check_checkpoint(Path(named))
    return str(named)


def save_final(trainer: Any, run: Run) -> None:
    """Save model and tokenizer to final/, whole or not at all, and push them where that is asked.

    Args:
        trainer: A transformers Trainer.
        run: Its run.
    """
    partial = run.path / "_final.partial"  # what begins with _ is not pushed to the Hub
    # As inside Trainer, which does not push: a Hub that cannot be reached must not cost the model.
    try:
        with saved_whole(trainer):
            trainer.save_model(str(partial), _internal_call=True)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # half a model is none
        raise
    trainer.accelerator.wait_for_everyone()
    try:
        if trainer.args.push_to_hub:
            _push(trainer, run, partial)
    finally:
        _move_to_final(trainer, run, partial)


def _push(trainer: Any, run: Run, folder: Path) -> None:
    # Trainer saves once more to where it uploads from, which is not to be the run folder.
    args = trainer.args
    before, args.output_dir = args.output_dir, str(folder)
    name = (args.hub_model_id or run.path.name).split("/")[-1]
    try:
        trainer.push_to_hub("Model save", model_name=name, revision=args.hub_revision)
    finally:
        args.output_dir = before
        shutil.rmtree(run.path / STAGED, ignore_errors=True)


def _move_to_final(trainer: Any, run: Run, partial: Path) -> None:
    if is_main_process():
        # A pickle of the trainer's arguments; config.yaml says the same in plain text.
        (partial / "training_args.bin").unlink(missing_ok=True)
        if run.final.exists():
            shutil.rmtree(run.final)
        partial.replace(run.final)
    trainer.accelerator.wait_for_everyone()


def finish(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    """Write summary.json and then the report, from the main process.

    Args:
        run: The run.
        summary: Its numbers.

    Returns:
        The summary.
    """
    if is_main_process():
        # Late, because it imports matplotlib.
        from recipes.lib.report import write_report

        run.write_summary(summary)
        write_report(run.path)
    return summary
