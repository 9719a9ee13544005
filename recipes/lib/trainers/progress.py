"""What a trainer tells while it runs: metrics.jsonl for programs, one progress bar for people."""

import os
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from recipes.lib.errors import note
from recipes.lib.runs.files import append_jsonl, read_jsonl, write_jsonl
from recipes.lib.runs.lock import refuse_if_locked

# Totals of a finished training that Trainer logs once; they belong to the summary.
NUM_LOGS = 10  # of a run whose user leaves open how often
TOTALS = ("train_runtime", "train_loss", "total_flos")


class RunCallback(TrainerCallback):
    """Appends every log to metrics.jsonl.

    Args:
        path: The run folder.
        is_asked: Whether logging_steps is the user's; else a short run is logged more often.
    """

    def __init__(self, path: Path, *, is_asked: bool = True) -> None:
        self.metrics = path / "metrics.jsonl"
        self.is_asked = is_asked
        self.start = time.monotonic()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the file, or keep of it what the checkpoint has seen; the same with samples."""
        if not self.is_asked:  # Trainer's default may be longer than the run
            state.logging_steps = min(state.logging_steps, max(1, state.max_steps // NUM_LOGS))
        if args.get_warmup_steps(state.max_steps) >= max(state.max_steps, 1):
            note(
                f"warmup_steps={args.warmup_steps:g}: the run has {state.max_steps} steps, and its "
                "learning rate never arrives; give a share of them, such as 0.1."
            )
        if not state.is_world_process_zero:
            return
        samples = self.metrics.with_name("samples.jsonl")
        if samples.exists():
            write_jsonl(samples, _seen(samples, state.global_step))
        kept = _seen(self.metrics, state.global_step) if self.metrics.exists() else []
        if state.global_step >= state.max_steps:  # what came after training comes again
            kept = kept[: len(state.log_history)]
        write_jsonl(self.metrics, kept)
        self.start = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Have the last steps logged, though they are fewer than logging_steps."""
        is_last = state.global_step >= state.max_steps and args.logging_strategy != "no"
        control.should_log = control.should_log or is_last

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Append one line."""
        if not state.is_world_process_zero or not logs or any(key in logs for key in TOTALS):
            return
        refuse_if_locked(self.metrics.parent)  # it may have been moved
        row = {"step": state.global_step, "seconds": round(time.monotonic() - self.start, 3)}
        append_jsonl(self.metrics, [row | logs])


def _seen(path: Path, step: int) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(path) if row.get("step", 0) <= step] if step else []


class ProgressBar(ProgressCallback):
    """Trainer's own progress bar, with the newest numbers behind it instead of printed logs.

    Args:
        label: Word before the bar.
        shown: Metric names to show, with the short name that stands on the bar.
    """

    def __init__(self, label: str, shown: dict[str, str]) -> None:
        super().__init__()
        self.label = label
        self.shown = shown

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Put the label on the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.label)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Show the newest numbers."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            numbers = {s: f"{float(logs[n]):.3g}" for n, s in self.shown.items() if n in logs}
            if numbers:
                self.training_bar.set_postfix(numbers)


def add_run_callbacks(
    trainer: Trainer, path: Path, label: str, shown: dict[str, str], is_asked: bool = True
) -> None:
    """Give a trainer the run folder's callbacks, and ears for signals that end the run.

    Args:
        trainer: A Resumable of transformers' Trainer.
        path: The run folder.
        label: Word before the progress bar.
        shown: As in ProgressBar.
        is_asked: Whether logging_steps is the user's.
    """
    hide_hub_token(trainer.args)
    trainer.listens = True
    trainer.add_callback(RunCallback(path, is_asked=is_asked))
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressBar(label, shown))


def hide_hub_token(training: TrainingArguments) -> None:
    """Move a Hub token from the arguments, which are pickled and logged, to the environment.

    Args:
        training: A TrainingArguments; its hub_token is emptied.
    """
    if getattr(training, "hub_token", None):
        os.environ["HF_TOKEN"] = training.hub_token
        training.hub_token = None
