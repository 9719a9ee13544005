"""Runs a small PPO on as many processes as the launcher started, and writes what came out.

Arguments: folder with model and tokenizer, folder for the results, critics.
"""

import json
import sys
from pathlib import Path
from typing import Any

from recipes.lib.models.quick_import import import_quickly

import_quickly()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from recipes.lib.distributed.process_exit import end  # noqa: E402
from recipes.lib.ppo.config import PPOConfig  # noqa: E402
from recipes.lib.ppo.trainer import PPOTrainer  # noqa: E402

SEEN: list[tuple[str, list[int]]] = []  # by this process, in the order of sampling


def every_fifth(prompts: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
    SEEN.extend(zip(prompts, completion_ids, strict=True))
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]


def even(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]


def train(model: str, out: Path, critic: str) -> Any:
    """Train with a critic; give the trainer."""
    SEEN.clear()
    args = PPOConfig(
        output_dir=str(out),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        total_episodes=48,
        rollout_batch_size=16,
        num_ppo_epochs=2,
        num_mini_batches=2,
        per_device_train_batch_size=2,
        max_completion_length=6,
        learning_rate=1e-3,
        target_kl=0.1,
        # the whole mini-batch is beyond it in the second step, neither process's half is
        max_approx_kl=8e-4 if critic == "adapter" else None,
        cost_limit=1.0 if critic == "model" else None,
        critic=critic,
        gradient_checkpointing=critic == "adapter",  # recomputed in roles, under DDP too
    )
    prompts = [{"prompt": " ".join("a b c d".split()[: 1 + i % 4])} for i in range(10)]
    trainer = PPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        every_fifth,
        args,
        Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if critic == "adapter" else None,
        cost_funcs=even if critic == "model" else None,
    )
    trainer.train()
    rollout = trainer.stream.rollout
    assert rollout is not None
    own = {
        "seen": SEEN,
        "kl_coef": trainer.collector.kl.value,
        "braked": trainer.braked,
        "cost": vars(trainer.collector.cost),
        "advantages": rollout.advantages.tolist(),
        "mask": rollout.completion_mask.tolist(),
    }
    (out / f"rank{args.process_index}.json").write_text(json.dumps(own))
    if trainer.is_world_process_zero():
        state = trainer.actor_critic.state_dict()
        torch.save({name: tensor.clone() for name, tensor in state.items()}, out / "w.pt")
        rows = [r for r in trainer.state.log_history if "objective/kl" in r]
        facts = {
            "world_size": args.world_size,
            "wrapped": type(trainer.model_wrapped).__name__,
            "logs": rows,
        }
        (out / "facts.json").write_text(json.dumps(facts))
    return trainer


if __name__ == "__main__":
    model, folder, *critics = sys.argv[1:]
    trainers = [train(model, Path(folder) / critic, critic) for critic in critics]
    trainers[-1].accelerator.end_training()
    end(0)  # a thread of gloo that is left could abort the exit
