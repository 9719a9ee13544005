"""Recipes for reinforcement learning from human feedback on Hugging Face TRL.

A recipe is one module directly in this package plus the YAML files under `configs/` with the same
name. `rlhf <name>`, `python -m recipes.<name>` and `accelerate launch -m recipes.<name>` all start
it. The names below are for use from Python; what they need loads on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.lib.errors import UserError
    from recipes.lib.ppo.config import PPOConfig
    from recipes.lib.ppo.trainer import PPOTrainer
    from recipes.lib.recipe.main import run
    from recipes.lib.rewards.reward_models import RewardModel

__all__ = ["PPOConfig", "PPOTrainer", "RewardModel", "UserError", "run"]

_HOMES = {
    "PPOConfig": "recipes.lib.ppo.config",
    "PPOTrainer": "recipes.lib.ppo.trainer",
    "RewardModel": "recipes.lib.rewards.reward_models",
    "UserError": "recipes.lib.errors",
    "run": "recipes.lib.recipe.main",
}


def __getattr__(name: str) -> Any:
    """Imports a lazy attribute on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Lists the lazy attributes beside the ordinary ones."""
    return sorted([*globals(), *__all__])
