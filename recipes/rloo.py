"""RLOO: trains a policy without a critic; each completion's baseline is the others of its prompt.

    advantage_i = r_i - mean of r_j over the other completions of the prompt,
    r = score - beta * KL(policy || start), KL summed over the tokens of the completion

by TRL's RLOOTrainer, whose loss clips the ratio of whole completions.

Data: prompt (text or messages); further columns are handed on to the reward functions.
Writes final/ (the policy), metrics.jsonl, samples.jsonl with log_completions, summary.json and
report.html.

A resumed run is bit-equal to the unbroken one, on the same number of processes: TRL samples with
the noise of each process.

    python -m recipes.rloo --config configs/rloo/qwen3-0.6b-ultrafeedback.yaml
    accelerate launch --num_processes 2 -m recipes.rloo --config configs/rloo/...

Source: Ahmadian et al., Back to Basics, 2024, equation 7.
"""

from __future__ import annotations

from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig

    from recipes.lib.recipe.rloo_grpo import SamplingArguments
    from recipes.lib.trainers.batch_sizes import RLOOBatchConfig

    return SamplingArguments, RLOOBatchConfig, ModelConfig


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, save.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: scores, KL (nats per token) and completion length (tokens) as means
        over the last logs, episodes, seconds.

    Raises:
        UserError: The data, a model, a reward or the run folder cannot be used.
        FaultError: A reward model is at fault.
    """
    from trl import RLOOTrainer

    from recipes.lib.recipe.rloo_grpo import train_on_samples

    return train_on_samples(config, RLOOTrainer)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("rloo", argv)


if __name__ == "__main__":
    raise SystemExit(main())
