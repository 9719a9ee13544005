"""Training on the tasks of exact_tasks.py, by this project's PPO and by TRL's RLOO and GRPO."""

import copy
import tempfile
import time
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from scripts.bench.ppo.exact_tasks import Task, judge

EPISODES_PER_ROLLOUT = 256
COMMON = {
    "per_device_train_batch_size": 64,
    "num_generations": 4,
    "logging_steps": 10**6,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "lr_scheduler_type": "linear",
}


def data_set(task: Task) -> Dataset:
    """256 rows of the task's prompts."""
    return Dataset.from_list([{"prompt": task.texts[i % len(task.texts)]} for i in range(256)])


def train(
    task: Task, method: str, episodes: int, seed: int, settings: dict[str, Any]
) -> dict[str, float]:
    """Train one policy.

    Args:
        task: The task.
        method: ppo, rloo or grpo.
        episodes: Completions to sample, a multiple of 256.
        seed: Seed of the run; the reference is the same for all.
        settings: Changes to the method's configuration; `lora` (a rank) adds an adapter,
            on `lora_targets` if given.

    Returns:
        What `judge` says of the policy, and the seconds of training.
    """
    model, tokenizer = task.build()
    reference = copy.deepcopy(model)
    settings = dict(settings)
    rank = settings.pop("lora", None)
    targets = settings.pop("lora_targets", "all-linear")
    peft_config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets) if rank else None
    with tempfile.TemporaryDirectory() as folder:
        kwargs = {"output_dir": folder, "seed": seed, "learning_rate": 1e-3} | settings
        start = {"model": model, "processing_class": tokenizer, "peft_config": peft_config}
        make = make_ppo if method == "ppo" else make_group
        trainer = make(task, method, episodes, start, kwargs)
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began
    policy = trainer.actor_critic.policy if method == "ppo" else trainer.model
    return judge(task, policy, reference) | {"seconds": seconds}


def make_ppo(task: Task, method: str, episodes: int, start: Any, kwargs: Any) -> Any:
    """This project's PPO."""
    from recipes.lib.ppo.config import PPOConfig
    from recipes.lib.ppo.trainer import PPOTrainer

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return task.rewards(prompts, completion_ids)

    args = PPOConfig(
        **COMMON
        | {
            "total_episodes": episodes,
            "rollout_batch_size": EPISODES_PER_ROLLOUT,
            "num_mini_batches": 4,
            "sampling_batch_size": 256,
            "scoring_batch_size": 256,
            "max_completion_length": task.max_tokens,
            "kl_coef": task.beta,
        }
        | kwargs
    )
    return PPOTrainer(reward_funcs=reward, args=args, train_dataset=data_set(task), **start)


def make_group(task: Task, method: str, episodes: int, start: Any, kwargs: Any) -> Any:
    """TRL's RLOO or GRPO, on as many episodes, with four passes over each rollout."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return task.rewards(prompts, completion_ids)

    passes = kwargs.pop("num_iterations", 4)
    settings = (
        COMMON
        | {
            "steps_per_generation": 4,
            "num_iterations": passes,
            "max_steps": episodes // EPISODES_PER_ROLLOUT * 4 * passes,
            "max_completion_length": task.max_tokens,
            "beta": task.beta,
            "temperature": 1.0,
        }
        | kwargs
    )
    if method == "rloo":
        config, trainer = RLOOConfig(**settings), RLOOTrainer
    else:
        settings = {"scale_rewards": "none", "loss_type": "dapo"} | settings
        config, trainer = GRPOConfig(**settings), GRPOTrainer
    # by name, so that TRL's trainers make their own reference
    folder = settings["output_dir"] + "/model"
    start["model"].save_pretrained(folder)
    start["processing_class"].save_pretrained(folder)
    start = start | {"model": folder}
    return trainer(reward_funcs=[reward], args=config, train_dataset=data_set(task), **start)
