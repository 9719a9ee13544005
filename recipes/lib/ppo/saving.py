"""What a PPO run keeps of its models: the policy as people load it, the critic beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from recipes.lib.distributed.shards import load_shards, whole_state
from recipes.lib.ppo.critic import load_value_weights, save_value_weights
from recipes.lib.ppo.roles import load_policy, save_policy


def save_models(trainer: Any, folder: Path) -> None:
    """Write policy and tokenizer; into a checkpoint the critic's weights too.

    Of a model in shards a checkpoint has the shards, which Trainer writes with the optimizer's; so
    it is with everything that DeepSpeed trains.

    Args:
        trainer: The PPOTrainer; all processes call it.
        folder: Where to.
    """
    is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
    weights = None if is_checkpoint else whole_state(trainer)
    if not trainer.args.should_save:
        return
    folder.mkdir(parents=True, exist_ok=True)
    trainer.processing_class.save_pretrained(folder)
    if is_checkpoint and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return
    save_policy(trainer.actor_critic, folder, weights)
    if is_checkpoint:
        save_value_weights(trainer.actor_critic, folder)


def load_models(trainer: Any, folder: Path) -> None:
    """Read policy and critic of a checkpoint back; not under FSDP2, where Trainer does it.

    Args:
        trainer: The PPOTrainer.
        folder: The checkpoint.
    """
    if trainer.is_deepspeed_enabled:
        load_shards(trainer, str(folder))
        return
    load_policy(trainer.actor_critic, folder)
    load_value_weights(trainer.actor_critic, folder)
