"""What a checkpoint keeps of a PPO run beside weights, optimizer and rollout: ppo_state.json."""

import json
from pathlib import Path
from typing import Any

from recipes.lib.ppo.health import Health
from recipes.lib.runs import write_json

FILE = "ppo_state.json"


def write_state(trainer: Any, sums: dict[str, float], folder: Path) -> None:
    """Write controllers, metrics that are not logged yet, and what was told.

    Args:
        trainer: The PPOTrainer.
        sums: Its sums since the last log, of all processes.
        folder: The checkpoint.
    """
    collector = trainer.collector
    state = {
        "kl_coef": collector.kl.value,
        "moments": vars(collector.moments),
        "returns_std": collector.returns_std,
        "has_units": collector.has_units,
        "metrics": collector.metrics,
        "samples": collector.samples,
        "sums": sums,
        "clock": trainer.clock.state(),
        "health": vars(trainer.health),
    }
    write_json(folder / FILE, state)


def read_state(trainer: Any, folder: Path) -> None:
    """Put a trainer back to where a checkpoint was written.

    Args:
        trainer: The PPOTrainer.
        folder: The checkpoint.
    """
    state = json.loads((folder / FILE).read_text(encoding="utf-8"))
    collector = trainer.collector
    collector.kl.value = state["kl_coef"]
    vars(collector.moments).update(state["moments"])
    collector.returns_std, collector.has_units = state["returns_std"], state["has_units"]
    collector.metrics, collector.samples = state["metrics"], state["samples"]
    # Sums are added up over processes when they are logged, so one of them takes them on.
    trainer.sums = state["sums"] if trainer.args.process_index == 0 else {}
    trainer.clock.load(state["clock"])
    trainer.health = Health(**state["health"])
