"""PPO on a task whose optimum is known: every completion can be enumerated.

optimality = (J - J_ref) / (J* - J_ref) with J = E[r] - beta KL: 0 is no learning, 1 the optimum.
"""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset

from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer

BETA = 0.1


@pytest.fixture
def task(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exact_task", shared / "bench/exact_task.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {"critic": "head", "vf_coef": 0.5},
        {"critic": "model", "critic_learning_rate": 3e-3},
    ],
    ids=["head", "model"],
)
def test_ppo_comes_close_to_the_known_optimum(
    task: ModuleType, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model, tokenizer = task.build()
    reference = copy.deepcopy(model)

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        firsts = [3 + int(prompt.removeprefix("p")) for prompt in prompts]
        return [task.reward(p, tuple(c)) for p, c in zip(firsts, completion_ids, strict=True)]

    args = PPOConfig(
        output_dir=str(tmp_path),
        total_episodes=10_240,
        rollout_batch_size=256,
        num_ppo_epochs=4,
        num_mini_batches=4,
        per_device_train_batch_size=64,
        sampling_batch_size=256,
        scoring_batch_size=256,
        max_completion_length=task.T,
        learning_rate=1e-3,
        kl_coef=BETA,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        seed=5,
        **settings,
    )
    prompts = Dataset.from_list([{"prompt": f"p{i % task.PROMPTS}"} for i in range(256)])
    trainer = PPOTrainer(model, reward, args, prompts, processing_class=tokenizer)
    trainer.train()
    result = task.evaluate(trainer.actor_critic.policy, reference, BETA)
    print(settings, result)
    assert result["optimality"] >= 0.985
    # what the trainer measures on its samples is what enumeration says of the policy
    last = [row for row in trainer.state.log_history if "objective/kl" in row][-1]
    assert last["objective/kl"] == pytest.approx(result["KL"], abs=0.4)
