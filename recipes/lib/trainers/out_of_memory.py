"""Memory of a card: how it is taken, and one that runs out in the middle of a training.

Then it is said where it was, what fits, and how to go on.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import Trainer, TrainingArguments

from recipes.lib.errors import UserError

OTHER_RUN = (
    "train an adapter (use_peft, load_in_4bit), lower the longest length of rows or completions"
)


@dataclass(frozen=True)
class Place:
    """What a training was computing.

    Args:
        where: Words for it.
        key: Of the batch that decides how much memory it takes; empty where none does.
    """

    where: str
    key: str = ""


WHILE_SAMPLING = "while completions were sampled"
TRAINING = "per_device_train_batch_size"
# Functions that stand in a traceback, from the outer to the inner ones.
PLACES = {
    "Stoppable.get_batch_samples": Place("while a batch was fetched"),
    "Stoppable._evaluate": Place("in an evaluation", "per_device_eval_batch_size"),
    "Stoppable.training_step": Place("in the forward pass", TRAINING),
    "Collector.sample": Place(WHILE_SAMPLING, "sampling_batch_size"),
    "Collector.score": Place("while completions were scored", "scoring_batch_size"),
    "RLOOTrainer._generate_and_score_completions": Place("while completions were scored", TRAINING),
    "GRPOTrainer._generate_and_score_completions": Place("while completions were scored", TRAINING),
    "RLOOTrainer._generate": Place(WHILE_SAMPLING),  # of all that are generated together
    "GRPOTrainer._generate": Place(WHILE_SAMPLING),
    "Accelerator.backward": Place("in the backward pass", TRAINING),
    "AcceleratedOptimizer.step": Place("in the optimizer step"),
    "Resumable._save_checkpoint": Place("while a checkpoint was saved"),
}


def place_of(error: BaseException) -> Place:
    """What was being computed when an exception was raised."""
    frames = [frame.f_code.co_qualname for frame, _ in traceback.walk_tb(error.__traceback__)]
    known = [PLACES[name] for name in frames if name in PLACES]
    return known[-1] if known else Place("in the middle of the run")


def memory_error(trainer: Trainer, error: BaseException) -> UserError:
    """One sentence for memory that ran out, with a checkpoint of all that was done before it.

    Args:
        trainer: A Resumable; what the step in hand holds is given up.
        error: What was raised; so are the frames that it came through.

    Returns:
        The error to raise in its place: where it was, what would fit, and how to go on.
    """
    phase = place_of(error)
    traceback.clear_frames(error.__traceback__)  # activations are in them
    error.__traceback__ = None
    trainer.give_up_step()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        stands = trainer.keep(error)
    except Exception as failed:  # there may be too little for that, too
        stands = f"no checkpoint could be written now ({type(failed).__name__})"
    size = getattr(trainer.args, phase.key, None) if phase.key else None
    told = f"memory ran out {phase.where}" + (f" ({phase.key}={size})" if size else "")
    smaller = list(
        smaller_run_flags(trainer.args, phase, fixed=bool(getattr(trainer, "calculate_KL", False)))
    )
    if smaller:
        return UserError(f"{told}; {stands}; go on with --resume {', or '.join(smaller)}.")
    return UserError(f"{told}; {stands}; to need less, {_other_run(phase)}, as another run.")


def smaller_run_flags(
    args: TrainingArguments, phase: Place, *, fixed: bool = False
) -> Iterator[str]:
    """What to say on the command line so that the same run needs less memory.

    Args:
        args: A TrainingArguments.
        phase: Where memory ran out.
        fixed: Whether another micro-batch would be another run, as KTO's KL makes it.

    Yields:
        Words of a command line, the one that does most at the least cost first.
    """
    size = getattr(args, phase.key) if phase.key else 1
    if phase.key == TRAINING:
        if size > 1 and not fixed:
            yield " ".join(_smaller_micro_batch(args, _largest_divisor(size)))
        if not args.gradient_checkpointing:
            yield "--gradient_checkpointing true"
    elif size > 1:
        yield f"--{phase.key} {size // 2}"


def _smaller_micro_batch(args: TrainingArguments, smaller: int) -> Iterator[str]:
    ratio = args.per_device_train_batch_size // smaller
    yield f"--per_device_train_batch_size {smaller}"
    if not hasattr(args, "rollout_batch_size"):  # PPO derives it
        yield f"--gradient_accumulation_steps {args.gradient_accumulation_steps * ratio}"
    if getattr(args, "states_generation", False):
        yield f"--steps_per_generation {args.steps_per_generation * ratio}"


def _largest_divisor(size: int) -> int:
    """The largest number below one that divides it."""
    return next(n for n in range(size // 2, 0, -1) if size % n == 0)


def _other_run(phase: Place) -> str:
    if phase.where == PLACES["AcceleratedOptimizer.step"].where:
        return "train an adapter (use_peft) or take an optimizer of 8 bits (optim=adamw_8bit)"
    if phase.where == WHILE_SAMPLING:
        return "lower generation_batch_size, steps_per_generation or max_completion_length"
    return OTHER_RUN
