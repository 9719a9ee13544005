"""A run that is resumed makes the steps of the run that was stopped, however they are cut up."""

from __future__ import annotations

from typing import Any

from recipes.lib.errors import UserError

REMEDY = "set it, gradient_accumulation_steps and the number of processes so that it does"


def batch_of(trainer: Any) -> dict[str, int]:
    """What an optimizer step of a trainer is made of.

    Args:
        trainer: A transformers Trainer.

    Returns:
        Rows of a step and of a micro-batch, the number of processes, and completions that are
        generated together (0 where that is not TRL's to say).
    """
    args = trainer.args
    micro_batch, processes = args.per_device_train_batch_size, args.world_size
    return {
        "rows": micro_batch * args.gradient_accumulation_steps * processes,
        "micro_batch": micro_batch,
        "processes": processes,
        "generated": getattr(args, "generation_batch_size", None) or 0,
    }


def refuse_other_batch(trainer: Any, before: dict[str, int]) -> None:
    """Refuse to go on with steps that are not those of the run before.

    Args:
        trainer: A transformers Trainer.
        before: `batch_of` the trainer that wrote the checkpoint.

    Raises:
        UserError: A step, a generation, or what KTO's KL is estimated from would be another one.
    """
    now = batch_of(trainer)
    key = f"per_device_train_batch_size={now['micro_batch']}"
    if now["rows"] != before["rows"]:
        raise UserError(
            f"{key} makes {now['rows']} rows of a step, and the run to resume has "
            f"{before['rows']}; {REMEDY}."
        )
    if now["generated"] != before["generated"]:
        raise UserError(
            f"{key} makes {now['generated']} completions of a generation, and the run to resume "
            f"has {before['generated']}; set steps_per_generation so that it does."
        )
    cut = [now[name] != before[name] for name in ("micro_batch", "processes")]
    if getattr(trainer, "calculate_KL", False) and any(cut):
        raise UserError(
            f"{key} on {now['processes']} processes: KTO estimates its KL within a micro-batch, "
            f"and the run to resume has {before['micro_batch']} on {before['processes']}; keep "
            "them."
        )
    if now["generated"] and cut[1]:
        raise UserError(
            f"{now['processes']} processes: TRL samples with the noise of each process, and the "
            f"run to resume has {before['processes']}; keep them."
        )
