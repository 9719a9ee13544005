"""PPO on a task whose optimum is known: every completion can be enumerated.

optimality = (J - J_ref) / (J* - J_ref) with J = E[r] - beta KL: 0 is no learning, 1 the optimum.
"""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

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


SETTINGS = [
    {"critic": "head"},
    {"critic": "model"},
]


class StopAt(TrainerCallback):
    """Saves and stops at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def make(task: ModuleType, model: Any, tokenizer: Any, folder: Path, **more: Any) -> PPOTrainer:
    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        firsts = [3 + int(prompt.removeprefix("p")) for prompt in prompts]
        return [task.reward(p, tuple(c)) for p, c in zip(firsts, completion_ids, strict=True)]

    stop = more.pop("stop", None)
    args = PPOConfig(
        output_dir=str(folder),
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
        **more,
    )
    prompts = Dataset.from_list([{"prompt": f"p{i % task.PROMPTS}"} for i in range(256)])
    callbacks: list[TrainerCallback] = [StopAt(stop)] if stop else []
    return PPOTrainer(model, reward, args, prompts, processing_class=tokenizer, callbacks=callbacks)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SETTINGS[0], id="head"),
        pytest.param(SETTINGS[1], id="model", marks=pytest.mark.slow),  # docs/benchmarks/ppo.md
    ],
)
def test_ppo_comes_close_to_the_known_optimum(
    task: ModuleType, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model, tokenizer = task.build()
    reference = copy.deepcopy(model)
    trainer = make(task, model, tokenizer, tmp_path, total_episodes=10_240, **settings)
    trainer.train()
    result = task.evaluate(trainer.actor_critic.policy, reference, BETA)
    print(settings, result)
    assert result["optimality"] >= 0.985
    # what the trainer measures on its samples is what enumeration says of the policy
    last = [row for row in trainer.state.log_history if "objective/kl" in row][-1]
    assert last["objective/kl"] == pytest.approx(result["KL"], abs=0.4)


@pytest.mark.parametrize("settings", SETTINGS, ids=["head", "model"])
def test_item_48_stopped_at_step_37_of_96_and_resumed_it_is_bit_equal(
    task: ModuleType, tmp_path: Path, settings: dict[str, Any]
) -> None:
    weights = []
    for name, stop in (("whole", None), ("broken", 37)):
        model, tokenizer = task.build()
        more = {"total_episodes": 1536, **settings}
        trainer = make(task, model, tokenizer, tmp_path / name, stop=stop, **more)
        trainer.train()
        if stop:
            assert trainer.state.global_step == 37
            model, tokenizer = task.build()
            trainer = make(task, model, tokenizer, tmp_path / name, **more)
            trainer.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-37"))
        assert trainer.state.global_step == 96
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
