"""Two recorded runs of 30 optimizer steps: what every step computed, to compare with later."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from peft import LoraConfig

from tests.helpers import tiny

RECORD = Path(__file__).parents[1] / "parity/golden.json"
VERSIONS = ("torch", "transformers", "peft", "accelerate")

# Everything that a default could move stands here: the record pins what is computed, not defaults.
SETTINGS: dict[str, Any] = {
    "total_episodes": 80,
    "rollout_batch_size": 16,
    "num_ppo_epochs": 3,
    "num_mini_batches": 2,
    "num_generations": 1,
    "per_device_train_batch_size": 4,
    "max_completion_length": 8,
    "temperature": 0.9,
    "missing_eos_penalty": 0.5,
    "kl_coef": 0.1,
    "target_kl": 0.5,
    "kl_horizon": 200,
    "gamma": 0.99,
    "lam": 0.95,
    "cliprange": 0.2,
    "max_approx_kl": None,
    "cliprange_value": 0.2,
    "entropy_coef": 0.01,
    "learning_rate": 3e-3,
    "critic_learning_rate": 6e-3,
    "lr_scheduler_type": "linear",
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-5,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "warmup_steps": 0,
    "critic_warmup_rollouts": 0,
    "normalize_rewards": True,
    "reward_clip": 2.0,
    "logging_steps": 1,
    "seed": 11,
}
RUNS: dict[str, dict[str, Any]] = {
    "head": {"critic": "head", "vf_coef": 0.5, "whiten_rewards": True},
    "model": {"critic": "model", "vf_coef": 0.1, "whiten_rewards": False, "lora": True},
}


def metrics(name: str, folder: Path) -> list[dict[str, float]]:
    """Metrics of each optimizer step of a run, without times."""
    more = dict(RUNS[name])
    if more.pop("lora", False):
        more["peft_config"] = LoraConfig(r=4, target_modules="all-linear")
    trainer = tiny.trainer(folder, tiny.llama(initializer_range=0.2), **(SETTINGS | more))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "objective/kl" in row]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def versions() -> dict[str, str]:
    """Versions that a record was made with."""
    found = {name: metadata.version(name) for name in VERSIONS}
    return found | {"python": platform.python_version()}


def renew(folder: Path) -> None:
    """Write the record anew.

    Args:
        folder: Where the runs may write.
    """
    runs = {name: metrics(name, folder / name) for name in RUNS}
    text = json.dumps({"versions": versions(), "runs": runs}, indent=1)
    RECORD.write_text(text + "\n", encoding="utf-8")
