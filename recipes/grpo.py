"""GRPO: trains a policy without a critic; advantages are scores within the group of a prompt.

    advantage_i = (r_i - mean of the group) / standard deviation of the group

by TRL's GRPOTrainer with its default loss (dapo: clipped ratios of tokens, every token weighing
the same). beta, 0 by default, adds the KL to the start as a loss; scale_rewards says what the
advantages are divided by.

Data: prompt (text or messages); further columns are handed on to the reward functions.
Writes final/ (the policy), metrics.jsonl, samples.jsonl with log_completions, summary.json and
report.html.

A resumed run is bit-equal to the unbroken one, on the same number of processes: TRL samples with
the noise of each process.

    python -m recipes.grpo --config configs/grpo/qwen3-0.6b-ultrafeedback.yaml
    accelerate launch --num_processes 2 -m recipes.grpo --config configs/grpo/...

Source: Shao et al., DeepSeekMath, 2024, equation 3.
"""

from __future__ import annotations

from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig

    from recipes.lib.recipe.rloo_grpo import GRPOArguments
    from recipes.lib.trainers.batch_sizes import GRPOBatchConfig

    return GRPOArguments, GRPOBatchConfig, ModelConfig


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, save.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: scores, KL (nats per token, with a beta) and completion length (tokens) as
        means over the last logs, episodes, seconds.

    Raises:
        UserError: The data, a model, a reward or the run folder cannot be used.
        FaultError: A reward model is at fault.
    """
    from trl import GRPOTrainer

    from recipes.lib.recipe.rloo_grpo import train_on_samples

    return train_on_samples(config, GRPOTrainer, **config.script.for_trl())


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("grpo", argv)


if __name__ == "__main__":
    raise SystemExit(main())
