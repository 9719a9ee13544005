"""KTO: trains a policy on single completions that were liked or disliked, without pairs.

    loss = w * (1 - sigmoid(+-(r(y) - z))),  r(y) = beta * log(policy(y) / start(y))

with + for a desirable completion and - for an undesirable one, z an estimate of the KL from the
completions of other prompts in the batch, w desirable_weight or undesirable_weight; by TRL's
KTOTrainer. The start is the model that the run began from: a second copy of it, or with LoRA the
model with its adapter off.

Data: prompt, completion (text or messages) and label (true or false); or chosen and rejected,
which become one desirable and one undesirable row. Rows are shuffled once, since TRL takes them in
order.
Writes final/ (the policy), metrics.jsonl, samples.jsonl with the implicit reward r of every test
row, and summary.json with auc (the probability that a desirable test row has the higher r; a coin's
0.5 before training) and margin.

    python -m recipes.kto --config configs/kto/qwen3-0.6b-ultrafeedback.yaml
    accelerate launch --num_processes 2 -m recipes.kto --config configs/kto/...

Source: Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, 2024, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import BESIDE, load_splits
from recipes.lib.data.prompts import prompt_text
from recipes.lib.data.streaming import Rows
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.models.chat_template import TemplateArguments
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.energy import EnergyArguments
from recipes.lib.runs.folder import RunArguments

SHOWN = {"loss": "loss", "rewards/margins": "margin", "kl": "kl"}
PAIR_COLUMNS = ("chosen", "rejected")
COLUMNS = ("prompt", "completion", "label")


@dataclass(kw_only=True)
class KTOArguments(RunArguments, DataArguments, TemplateArguments, PlanArguments, EnergyArguments):
    """Keys of the recipe beside those of KTOConfig and ModelConfig."""

    FEEDBACK: ClassVar[tuple[str, ...]] = ("unpaired_preference", "preference")

    global_batch_size: int | None = option(
        None, "Rows in one optimizer step over all processes; sets accumulation."
    )


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import KTOConfig, ModelConfig

    return KTOArguments, KTOConfig, ModelConfig


def columns_of(dataset: Any) -> tuple[str, ...]:
    """The columns to learn from: those of pairs where there are pairs."""
    return PAIR_COLUMNS if set(PAIR_COLUMNS) <= set(dataset.column_names) else COLUMNS


def load_unpaired(script: KTOArguments, seed: int) -> Rows:
    """Load training and test rows, unpaired and shuffled.

    Raises:
        UserError: As load_splits.
    """
    script.splits_labelled = True
    train, test = load_splits(script, seed, columns_of, BESIDE)
    train = _unpaired(train).shuffle(seed=seed)
    return Rows(train, None if test is None else _unpaired(test), train)


def _unpaired(rows: Any) -> Any:
    from trl import extract_prompt, unpair_preference_dataset

    if columns_of(rows) != PAIR_COLUMNS:
        return rows
    rows = rows if "prompt" in rows.column_names else rows.map(extract_prompt)
    return unpair_preference_dataset(rows)


def scored_rows(trainer: Any, before: list[float]) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: the test rows as plain text with their implicit rewards."""
    from recipes.lib.evaluation.implicit_rewards import implicit_rewards

    rewards = implicit_rewards(trainer, "completion_ids", before)
    eos = trainer.processing_class.eos_token or ""  # which TRL added to plain text
    return [
        {name: prompt_text(row[name]).removesuffix(eos) for name in ("prompt", "completion")}
        | {"label": bool(row["label"]), "score": reward}
        for row, reward in zip(trainer.eval_dataset, rewards, strict=True)
    ]


def summarize(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Area under the curve and margin of the implicit rewards; nothing if one label is absent."""
    from sklearn.metrics import roc_auc_score

    liked = [row["score"] for row in rows if row["label"]]
    disliked = [row["score"] for row in rows if not row["label"]]
    if not liked or not disliked:
        return {}
    auc = roc_auc_score([row["label"] for row in rows], [row["score"] for row in rows])
    margin = sum(liked) / len(liked) - sum(disliked) / len(disliked)
    return {"auc": float(auc), "margin": margin}


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, save, score the test rows.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: train_loss; with test rows of both labels auc in 0..1 and margin (beta * nats).

    Raises:
        UserError: The data, the model or the run folder cannot be used.
    """
    from trl import KTOTrainer

    from recipes.lib.evaluation.implicit_rewards import sequence_logps
    from recipes.lib.recipe import spine

    training = config.training
    spine.check_start(config)
    rows = load_unpaired(config.script, training.seed)
    check_plan(config, rows.test is not None)
    trainer = spine.make_preference_trainer(KTOTrainer, config, rows)
    folder = spine.start_run(config, trainer, SHOWN)
    before = sequence_logps(trainer, "completion_ids")
    summary = spine.train(trainer, folder)
    spine.save_final(trainer, folder)
    scored = scored_rows(trainer, before) if rows.test is not None else []
    if scored and is_main_process():
        folder.write_samples(scored)
        summary |= summarize(scored)
    return spine.finish(folder, config, summary)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("kto", argv)


if __name__ == "__main__":
    raise SystemExit(main())
