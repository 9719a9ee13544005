"""DPO: trains a policy on preferred and rejected completions, without a reward model.

    loss = -log sigmoid(r(chosen) - r(rejected)),  r(y) = beta * log(policy(y) / start(y))

by TRL's DPOTrainer (loss_type names its other losses). The start is the model that the run began
from: a second copy of it, or with LoRA the model with its adapter off.

Data: chosen and rejected, with a prompt or containing it (text or messages), as `rlhf feedback`
writes them; a test row's `noise` column is the probability that its label is wrong.
Writes final/ (the policy), metrics.jsonl, samples.jsonl with the implicit reward r of every test
pair, and summary.json with their accuracy (before training every r is 0, a coin's 0.5) and margin.

    python -m recipes.dpo --config configs/dpo/qwen3-0.6b-ultrafeedback.yaml
    accelerate launch --num_processes 2 -m recipes.dpo --config configs/dpo/...

Source: Rafailov et al., Direct Preference Optimization, 2023, equation 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.prompts import prompt_text
from recipes.lib.data.streaming import load_rows
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.models.chat_template import TemplateArguments
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.energy import EnergyArguments
from recipes.lib.runs.folder import RunArguments

SHOWN = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
SIDES = ("chosen", "rejected")


@dataclass(kw_only=True)
class DPOArguments(RunArguments, DataArguments, TemplateArguments, PlanArguments, EnergyArguments):
    """Keys of the recipe beside those of DPOConfig and ModelConfig."""

    FEEDBACK: ClassVar[tuple[str, ...]] = ("preference",)

    global_batch_size: int | None = option(
        None, "Pairs in one optimizer step over all processes; sets accumulation."
    )


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import DPOConfig, ModelConfig

    return DPOArguments, DPOConfig, ModelConfig


def scored_rows(trainer: Any, before: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: the test pairs as plain text with their implicit rewards."""
    from recipes.lib.evaluation.implicit_rewards import implicit_rewards

    rewards = {side: implicit_rewards(trainer, f"{side}_ids", before[side]) for side in SIDES}
    eos = trainer.processing_class.eos_token or ""  # which TRL added to plain text
    return [
        {name: prompt_text(pair[name]).removesuffix(eos) for name in ("prompt", *SIDES)}
        | {f"score_{side}": rewards[side][row] for side in SIDES}
        for row, pair in enumerate(trainer.eval_dataset)
    ]


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, save, score the test pairs.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: train_loss; with test pairs their accuracy in 0..1 and margin (beta * nats).

    Raises:
        UserError: The data, the model or the run folder cannot be used.
    """
    from trl import DPOTrainer

    from recipes.lib.evaluation.implicit_rewards import sequence_logps
    from recipes.lib.recipe import spine

    script, training = config.script, config.training
    spine.check_start(config)
    spine.look_for_pictures(config)
    rows = load_rows(script, training, lambda _: SIDES)
    check_plan(config, rows.test is not None)
    trainer = spine.make_preference_trainer(DPOTrainer, config, rows)
    folder = spine.start_run(config, trainer, SHOWN)
    pictured = script.reads_pictures  # whose tokens are made as they are read
    before = {} if pictured else {s: sequence_logps(trainer, f"{s}_ids") for s in SIDES}
    rows.begin()
    summary = spine.train(trainer, folder)
    spine.save_final(trainer, folder)
    if pictured and rows.test is not None:
        found = trainer.evaluate()
        summary |= {"accuracy": found["eval_rewards/accuracies"]}
        summary |= {"margin": found["eval_rewards/margins"]}
    scored = scored_rows(trainer, before) if rows.test is not None and not pictured else []
    if scored and is_main_process():
        folder.write_samples(scored)
        summary |= spine.pair_numbers(scored, trainer.eval_dataset)
    return spine.finish(folder, config, summary)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("dpo", argv)


if __name__ == "__main__":
    raise SystemExit(main())
