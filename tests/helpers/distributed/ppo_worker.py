"""Runs a small PPO on as many processes as the launcher started, and writes what came out.

Arguments: folder with model and tokenizer, folder for the result, critic.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.lib.distributed.process_exit import end
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer

SEEN: list[tuple[str, list[int]]] = []  # by this process, in the order of sampling


def every_fifth(prompts: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
    SEEN.extend(zip(prompts, completion_ids, strict=True))
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]


def main(model: str, out: str, critic: str) -> None:
    args = PPOConfig(
        output_dir=out,
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
    )
    trainer.train()
    rollout = trainer.stream.rollout
    assert rollout is not None
    own = {
        "seen": SEEN,
        "kl_coef": trainer.collector.kl.value,
        "advantages": rollout.advantages.tolist(),
        "mask": rollout.completion_mask.tolist(),
    }
    (Path(out) / f"rank{args.process_index}.json").write_text(json.dumps(own))
    if trainer.is_world_process_zero():
        state = trainer.actor_critic.state_dict()
        torch.save({name: tensor.clone() for name, tensor in state.items()}, Path(out) / "w.pt")
        rows = [r for r in trainer.state.log_history if "objective/kl" in r]
        facts = {
            "world_size": args.world_size,
            "wrapped": type(trainer.model_wrapped).__name__,
            "logs": rows,
        }
        (Path(out) / "facts.json").write_text(json.dumps(facts))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
    end(0)  # a thread of gloo that is left could abort the exit
