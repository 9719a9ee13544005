"""Plays in an environment on as many processes as the launcher started, and writes what came out.

Argument: folder for the results.
"""

import sys
from pathlib import Path

from recipes.lib.models.quick_import import import_quickly

import_quickly()

import torch  # noqa: E402

from recipes.lib.distributed.process_exit import end  # noqa: E402
from tests.helpers import tiny  # noqa: E402
from tests.recipes.test_environments import Walk, logged, make  # noqa: E402

SETTINGS = {
    "total_episodes": 48,
    "rollout_batch_size": 16,
    "num_environments": 4,
    "learning_rate": 1e-3,
    "max_approx_kl": None,
}


def play(folder: Path, context: str) -> object:
    """Train with one context and write ids, weights and logs."""
    trainer = make(folder / context, Walk, context=context, **SETTINGS)
    first = trainer.collector.rollout(0)
    trainer.collector.player.slots = []
    trainer.train()
    if trainer.is_world_process_zero():
        made = {
            "processes": trainer.args.world_size,
            "ids": first.completion_ids,
            "actions": first.action_mask,
            "weights": tiny.state(trainer.actor_critic),
            "logs": logged(trainer),
            "slots": trainer.collector.player.slots,
        }
        torch.save(made, folder / f"{context}.pt")
    return trainer


if __name__ == "__main__":
    trainers = [play(Path(sys.argv[1]), context) for context in ("all", "last")]
    trainers[-1].accelerator.end_training()  # type: ignore[attr-defined]
    end(0)  # a thread of gloo that is left could abort the exit
