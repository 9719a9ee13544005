"""Keys about rewards: of the recipes that sample, and of whoever asks a reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.errors import UserError


@dataclass(kw_only=True)
class EnsembleArguments:
    """What the outputs of a reward model say together."""

    ensemble_aggregation: str = option(
        "mean",
        "What an ensemble of outputs of a reward model says: their mean, the least of them, or "
        "their mean less ensemble_sd_weight standard deviations.",
        choices=("mean", "min", "mean_minus_sd"),
    )
    ensemble_sd_weight: float = option(1.0, "Of mean_minus_sd: how many standard deviations.")

    def reward_model(self, name: str, dtype: str = "float32") -> Any:
        """A reward model as `load_reward_functions` takes it, with what becomes of its ensemble."""
        from recipes.lib.rewards.reward_models import Aggregation, ModelReward  # late: torch

        said = Aggregation(self.ensemble_aggregation, self.ensemble_sd_weight)
        return ModelReward(name, said, dtype)


@dataclass(kw_only=True)
class RewardArguments(EnsembleArguments):
    """Keys about rewards of the recipes that sample."""

    reward_funcs: list[str] = field(
        metadata={
            "help": "Rewards: runs, folders or Hub ids of reward models, functions as "
            "file.py:function, judges as judge.yaml, or names of TRL's such as accuracy_reward."
        }
    )
    eval_reward_funcs: list[str] = option(
        list,
        "Held-out rewards, written as reward_funcs: evaluations ask them, too, and training never "
        "learns from them; each is eval_held_out/NAME.",
    )
    reward_timeout: float | None = option(
        None,
        "Seconds that a reward function may take for a batch. With it functions run in processes "
        "of their own, which are killed and started anew.",
    )
    reward_retries: int = option(
        3,
        "How often a reward function is asked again that timed out, died or lost a connection, "
        "after 1, 2, 4 ... seconds.",
    )

    def rewards(self) -> list[Any]:
        """The rewards as PPOTrainer takes them: names of models, functions that are patient.

        Raises:
            UserError: A function is not there.
        """
        return [self._one(reference) for reference in self.reward_funcs]

    def held_out(self, training: Any, test: Any) -> list[Any]:
        """As `rewards`, of those that evaluations ask, too.

        Raises:
            UserError: A function is not there, or nothing is evaluated.
        """
        if self.eval_reward_funcs and (test is None or training.eval_strategy == "no"):
            raise UserError(
                f"eval_reward_funcs={self.eval_reward_funcs}: nothing is evaluated; set "
                "eval_strategy, and test_fraction or test_dataset_name."
            )
        return [self._one(reference) for reference in self.eval_reward_funcs]

    def _one(self, reference: str) -> Any:
        # Late, because they import torch.
        from recipes.lib.rewards.loading import is_function_reference, is_judge, load_function
        from recipes.lib.rewards.retries import RewardProcess, with_retries
        from recipes.lib.rewards.scoring import function_name

        if not is_function_reference(reference):
            is_as_is = self.ensemble_aggregation == "mean" or is_judge(reference)
            return reference if is_as_is else self.reward_model(reference)
        function = load_function(reference)
        if self.reward_timeout is not None:
            function = RewardProcess(reference, function_name(function), self.reward_timeout)
        return with_retries(function, self.reward_retries)
