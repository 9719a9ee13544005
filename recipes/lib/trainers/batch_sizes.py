"""RLOO and GRPO with the batch stated as everywhere here: completions of one optimizer step."""

from __future__ import annotations

import os
from dataclasses import dataclass

from transformers import TrainingArguments
from trl import GRPOConfig, RLOOConfig

from recipes.lib.config.fields import option
from recipes.lib.errors import UserError


@dataclass
class StatedBatch:
    """One key on top of TRL's; what TRL derives from the accumulation follows it."""

    global_batch_size: int | None = option(
        None, "Completions in one optimizer step over all processes; sets accumulation."
    )

    def __post_init__(self) -> None:
        """Set the accumulation before TRL derives its generation batch from it."""
        temperature = self.temperature  # type: ignore[attr-defined]
        if temperature <= 0:
            raise UserError(f"temperature={temperature}: must be above 0; completions are drawn.")
        set_accumulation(self, self.global_batch_size, int(os.environ.get("WORLD_SIZE", "1")))
        # Whether steps_per_generation would have to follow another micro-batch by hand.
        self.states_generation = self.steps_per_generation is not None  # type: ignore[attr-defined]
        super().__post_init__()  # type: ignore[misc]


@dataclass
class RLOOBatchConfig(StatedBatch, RLOOConfig):
    """TRL's RLOOConfig and global_batch_size."""


@dataclass
class GRPOBatchConfig(StatedBatch, GRPOConfig):
    """TRL's GRPOConfig and global_batch_size."""


def num_episodes(training: RLOOConfig | GRPOConfig, num_steps: int) -> int:
    """Completions that were sampled for so many optimizer steps.

    Args:
        training: The configuration.
        num_steps: Optimizer steps.

    Returns:
        The completions of all generations begun; each serves num_iterations times.
    """
    micro_steps = num_steps * training.gradient_accumulation_steps
    served = training.steps_per_generation * training.num_iterations
    return -(-micro_steps // served) * training.generation_batch_size


def set_accumulation(
    training: TrainingArguments, global_batch_size: int | None, num_processes: int | None = None
) -> None:
    """Derive gradient accumulation from the batch of one optimizer step.

    Args:
        training: A TrainingArguments; its gradient_accumulation_steps is set.
        global_batch_size: Rows in one optimizer step over all processes; None leaves things be.
        num_processes: For how many processes; default: those of this run.

    Raises:
        UserError: The micro-batches of all processes do not divide it.
    """
    if global_batch_size is None:
        return
    processes = num_processes or training.world_size
    together = training.per_device_train_batch_size * processes
    if global_batch_size < 1 or global_batch_size % together:
        raise UserError(
            f"global_batch_size={global_batch_size}: not a multiple of {together} "
            f"(per_device_train_batch_size {training.per_device_train_batch_size} on "
            f"{processes} processes); change one of them."
        )
    training.gradient_accumulation_steps = global_batch_size // together
