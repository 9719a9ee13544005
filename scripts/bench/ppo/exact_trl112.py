"""PPOTrainer of TRL 1.12, the last release that had it, on one task of exact_tasks.py.

Run by `exact_optimum` as a process of its own with that release first on PYTHONPATH:
`exact_trl112.py TASK EPISODES SEED SETTINGS`, the settings as JSON. Prints one line of JSON.
"""

import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer

from scripts.bench.ppo.exact_tasks import EOS, PAD, Task, find, judge


class RewardTrunk(nn.Module):
    """Says the task's reward of each sequence at every one of its positions."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, input_ids: Tensor, attention_mask: Any = None, **_: Any) -> Any:
        """Find prompt and completion in each row, and ask the task."""
        width = input_ids.shape[1] - self.task.max_tokens
        scores = []
        for row in input_ids.tolist():
            prompt = tuple(token for token in row[:width] if token != PAD)
            said = row[width:]
            ended = said[: said.index(EOS) + 1] if EOS in said else said
            scores.append(self.task.reward(prompt, tuple(ended)))
        hidden = torch.tensor(scores).view(-1, 1, 1).expand(-1, input_ids.shape[1], 1)
        return SimpleNamespace(hidden_states=[hidden])


class RewardModel(nn.Module):
    """What TRL's trainer takes for a reward model."""

    base_model_prefix = "trunk"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.trunk = RewardTrunk(task)
        self.score = nn.Identity()
        self.unused = nn.Parameter(torch.zeros(1))


def main() -> int:
    """Train and judge."""
    task, episodes, seed = find(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    model, tokenizer = task.build()
    reference = copy.deepcopy(model)
    critic_config = copy.deepcopy(model.config)
    critic_config.num_labels = 1
    critic = LlamaForSequenceClassification(critic_config)
    critic.model.load_state_dict(model.model.state_dict())
    rows = [{"input_ids": task.prompt_ids(task.prompts[i % len(task.prompts)])} for i in range(256)]
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=256,  # in mini-batches of 64, each an optimizer step
            gradient_accumulation_steps=1,
            total_episodes=episodes,
            response_length=task.max_tokens,
            stop_token="eos",
            local_rollout_forward_batch_size=256,
            num_sample_generations=0,
            kl_coef=task.beta,
            temperature=1.0,
            missing_eos_penalty=None,
            report_to="none",
            logging_steps=10**6,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
            **{"num_mini_batches": 4, "num_ppo_epochs": 4} | json.loads(sys.argv[4]),
        )
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=model,
            ref_model=copy.deepcopy(reference),
            reward_model=RewardModel(task),
            value_model=critic,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
        )
        start = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - start
    print(json.dumps(judge(task, model, reference) | {"seconds": seconds}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
