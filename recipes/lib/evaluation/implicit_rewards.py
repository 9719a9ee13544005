"""Implicit rewards: what a policy that was trained on preferences says of held-out completions.

    r(x, y) = beta * (log policy(y | x) - log start(y | x))

The start is the model that the run began from. Units: nats times beta.

Source: Rafailov et al., Direct Preference Optimization, 2023, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.lib.distributed.shards import unsharded_model
from recipes.lib.models.likelihood import label_logps

if TYPE_CHECKING:
    from transformers import Trainer


def sequence_logps(trainer: Trainer, column: str) -> list[float]:
    """Log-probability of each test completion under the model of a DPO or KTO trainer, as it is.

    Called before and after training, it gives both halves of the implicit reward, whether or not
    the trainer keeps a reference in memory. The column has the completions' ids, as `chosen_ids`.

    Returns:
        Nats for each row, cut to max_length as in training; nothing without test rows.
    """
    args, rows = trainer.args, trainer.eval_dataset
    if not rows:
        return []
    kept = slice(None)
    if args.max_length is not None:
        keeps_end = getattr(args, "truncation_mode", "keep_start") == "keep_end"
        kept = slice(-args.max_length, None) if keeps_end else slice(args.max_length)
    prompts, completions = list(rows["prompt_ids"]), list(rows[column])
    pairs = list(zip(prompts, completions, strict=True))
    ids = [(prompt + completion)[kept] for prompt, completion in pairs]
    labels = [([-100] * len(prompt) + completion)[kept] for prompt, completion in pairs]
    batch_size = args.per_device_eval_batch_size
    with unsharded_model(trainer) as model:
        logps = label_logps(model, ids, labels, batch_size=batch_size)
    return [float(logps_C.sum()) for logps_C in logps]


def implicit_rewards(trainer: Trainer, column: str, before: list[float]) -> list[float]:
    """The rewards of the test completions; `before` is what `sequence_logps` said of the start."""
    beta, after = trainer.args.beta, sequence_logps(trainer, column)
    return [beta * (one - other) for one, other in zip(after, before, strict=True)]
