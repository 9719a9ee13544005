"""What a checkpoint keeps of a PPO run beside optimizer and rollout: ppo_state.json, its models.

The policy is saved as people load it, the critic beside it.
"""

import json
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from recipes.lib.distributed.shards import gathered_state_dict
from recipes.lib.models.adapter_folders import save_base_quantization
from recipes.lib.ppo.critic import load_value_weights, save_value_weights
from recipes.lib.ppo.health import Health
from recipes.lib.ppo.roles import load_policy_weights, save_policy_weights
from recipes.lib.runs.files import write_json

FILE = "ppo_state.json"
# Kept under their own names; the last is not in checkpoints from before there were environments.
OF_COLLECTOR = ("returns_std", "has_units", "metrics", "samples", "recent")
OLD_NAME = ('"objective/completion_length"', '"completions/mean_length"')  # of a metric


def trainer_state(trainer: Any, sums: dict[str, float]) -> dict[str, Any]:
    """Controllers, metrics that are not logged yet, and what was told.

    Args:
        trainer: The PPOTrainer.
        sums: Its sums since the last log.

    Returns:
        Plain values; changed with the trainer unless they are copied.
    """
    collector = trainer.collector
    return {
        "kl_coef": collector.kl.value,
        "cost": vars(collector.cost),
        "moments": vars(collector.moments),
        "slots": collector.player.slots if collector.player else [],
        "people": collector.people.lines if collector.people else [],
        **{name: getattr(collector, name) for name in OF_COLLECTOR},
        "sums": sums,
        "braked": trainer.braked,
        "clock": trainer.clock.state(),
        "health": vars(trainer.health),
    }


def restore_state(trainer: Any, state: dict[str, Any]) -> None:
    """Put a trainer back to where it was.

    Args:
        trainer: The PPOTrainer.
        state: What `trainer_state` said then.
    """
    collector = trainer.collector
    collector.kl.value = state["kl_coef"]
    vars(collector.cost).update(state.get("cost", {}))
    vars(collector.moments).update(state["moments"])
    if collector.player:
        collector.player.slots = state["slots"]
    if collector.people:
        collector.people.lines = state.get("people", [])
    for name in OF_COLLECTOR:
        setattr(collector, name, state.get(name, []))
    trainer.sums, trainer.braked = state["sums"], state.get("braked", -1)
    trainer.clock.load(state["clock"])
    trainer.health = Health(**state["health"])


def write_state(trainer: Any, sums: dict[str, float], folder: Path) -> None:
    """Write the state of a trainer into a checkpoint; `sums` are those of all processes."""
    write_json(folder / FILE, trainer_state(trainer, sums))


def read_state(trainer: Any, folder: Path) -> None:
    """Put a trainer back to where a checkpoint was written."""
    text = (folder / FILE).read_text(encoding="utf-8")
    state = json.loads(text.replace(*OLD_NAME))
    # Sums are added up over processes when they are logged, so one of them takes them on.
    restore_state(trainer, state | ({} if trainer.args.process_index == 0 else {"sums": {}}))


def save_models(trainer: Any, folder: Path) -> None:
    """Write policy and tokenizer; into a checkpoint the critic's weights too.

    Of a model in shards a checkpoint has the shards, which Trainer writes with the optimizer's; so
    it is with everything that DeepSpeed trains.

    Args:
        trainer: The PPOTrainer; all processes call it.
        folder: Where to.
    """
    is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
    weights = None if is_checkpoint else gathered_state_dict(trainer)
    if not trainer.args.should_save:
        return
    folder.mkdir(parents=True, exist_ok=True)
    trainer.processing_class.save_pretrained(folder)
    if is_checkpoint and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return
    save_policy_weights(trainer.actor_critic, folder, weights)
    save_base_quantization(trainer.actor_critic.policy, folder)
    if is_checkpoint:
        save_value_weights(trainer.actor_critic, folder)


def load_models(trainer: Any, folder: Path) -> None:
    """Read policy and critic of a checkpoint back; not under FSDP2, where Trainer does it.

    Args:
        trainer: The PPOTrainer.
        folder: The checkpoint.
    """
    if trainer.is_deepspeed_enabled:
        from transformers.integrations.deepspeed import deepspeed_load_checkpoint

        deepspeed_load_checkpoint(trainer.model_wrapped, str(folder))
        return
    load_policy_weights(trainer.actor_critic, folder)
    load_value_weights(trainer.actor_critic, folder)
