"""Reward modelling: trains a language model with a score head to rank the chosen completion first.

Loss: -log sigmoid(score(chosen) - score(rejected)), the Bradley-Terry likelihood of the pair.

Data: chosen and rejected, with a prompt or containing it (text or messages); a test row's `noise`
column is the probability that its label contradicts the true order.
Writes final/ (a full model, or an adapter with its score head), metrics.jsonl, samples.jsonl with
the scores of every test pair, summary.json with the accuracy beside its ceiling and beside a
bag-of-words model of the same split, and check.json (docs/reward-checks.md); a fault ends it with
exit code 3.

    python -m recipes.reward --config configs/quickstart/reward.yaml
    accelerate launch --num_processes 2 -m recipes.reward --config configs/quickstart/reward.yaml

Source: Ouyang et al., Training language models to follow instructions, 2022, equation 1, with one
pair per comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import BESIDE
from recipes.lib.data.streaming import Rows, load_rows
from recipes.lib.distributed.processes import broadcast_from_main, is_main_process
from recipes.lib.doctor.checkup import CheckArguments, conclude, look
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import TemplateArguments, check_template, set_chat_template
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.folder import Run, RunArguments


@dataclass(kw_only=True)
class RewardModelArguments(
    RunArguments, DataArguments, TemplateArguments, PlanArguments, CheckArguments
):
    """Keys of the recipe beside those of RewardConfig and ModelConfig."""

    FEEDBACK: ClassVar[tuple[str, ...]] = ("preference",)

    global_batch_size: int | None = option(
        None, "Pairs in one optimizer step over all processes; sets accumulation."
    )
    scoring_batch_size: int = option(64, "Texts at a time when the test pairs are scored.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig, RewardConfig

    return RewardModelArguments, RewardConfig, ModelConfig


def load_pairs(script: RewardModelArguments, training: Any) -> Rows:
    """Load training and test pairs.

    Raises:
        UserError: As load_rows; or there are no test rows.
    """
    beside = (*BESIDE, "margin")
    rows = load_rows(script, training, lambda _: ("chosen", "rejected"), beside)
    if rows.test is None:
        raise UserError(
            "test_fraction=0.0: a reward model is worth its accuracy on pairs it has not seen; "
            "set test_fraction (0.1 is usual) or test_dataset_name."
        )
    return rows


def make_trainer(config: Config, rows: Rows) -> Any:
    """TRL's trainer on a classifier whose score head alone is new, with LoRA if asked for."""
    from transformers import set_seed
    from trl import RewardTrainer

    from recipes.lib.models.chat_template import read_template
    from recipes.lib.models.classifiers import load_adapted_classifier, load_reward_model
    from recipes.lib.models.policies import continues, lora_config
    from recipes.lib.models.tokenizers import load_tokenizer
    from recipes.lib.recipe import spine

    training, model_args = config.training, config.model
    name, going_on = model_args.model_name_or_path or "", continues(model_args)
    adapter = None if going_on else lora_config(model_args, "SEQ_CLS")
    trusted = training.trust_remote_code
    if training.chat_template_path is not None:
        read_template(training.chat_template_path)
    set_seed(training.seed)  # the new head is drawn while loading
    if going_on:
        model: Any = load_adapted_classifier(model_args, trust_remote_code=trusted)
        tokenizer = load_tokenizer(name, trust_remote_code=trusted)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    else:
        model, tokenizer = load_reward_model(
            name,
            str(model_args.dtype),
            new_head=True,
            model_args=model_args,
            trust_remote_code=trusted,
        )
    set_chat_template(tokenizer, config.script.chat_template, training.chat_template_path)
    template = tokenizer.chat_template or training.chat_template_path
    check_template(rows.known[0], "chosen", bool(template))
    return spine.make_row_trainer(
        RewardTrainer, config, tokenizer, rows, model=model, peft_config=adapter
    )


def check_final(config: Config, folder: Run, rows: Rows) -> dict[str, Any]:
    """Have the saved model checked, by the first process alone."""
    from recipes.lib.distributed.shards import load_unsharded

    trusted, size = config.training.trust_remote_code, config.script.scoring_batch_size
    pairs = (rows.known, rows.test)
    with load_unsharded(config.training):
        return broadcast_from_main(lambda: look(str(folder.path), pairs, size, trusted=trusted))


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, score the test pairs, save, and see that the saved model scores the same.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: accuracies in 0..1, the margin in units of the score.

    Raises:
        UserError: The data, the model or the run folder cannot be used.
        RuntimeError: The saved model scores differently.
        FaultError: The check found a fault; the run is whole.
    """
    from recipes.lib.distributed.shards import does_main_work, load_unsharded, unsharded_model
    from recipes.lib.evaluation.pair_scores import bag_of_words_accuracy, check_saved, score_shares
    from recipes.lib.recipe import spine

    script, training = config.script, config.training
    spine.check_start(config)
    rows = load_pairs(script, training)
    check_plan(config)
    test: Any = rows.test
    trainer = make_trainer(config, rows)
    folder = spine.start_run(config, trainer, {"loss": "loss", "accuracy": "accuracy"})
    rows.begin()
    summary = spine.train(trainer, folder)
    spine.note_guessing(trainer, math.log(2))
    spine.save_final(trainer, folder)
    trusted, size = training.trust_remote_code, script.scoring_batch_size
    with unsharded_model(trainer, trained=True) as model:
        scored = score_shares(trainer, model, test, size)
        if does_main_work(trainer):
            final = str(folder.final)
            with load_unsharded(training):
                check_saved(final, model, test, config.model, size, trust_remote_code=trusted)
    if is_main_process():
        folder.write_samples(scored)
        numbers = spine.pair_numbers(scored, test)
        margin = numbers.pop("margin")
        yardstick = bag_of_words_accuracy(rows.known, test)
        summary |= numbers | {"accuracy_bag_of_words": yardstick, "margin": margin}
    check = None if script.skip_check else check_final(config, folder, rows)
    if check is not None:
        summary["check"] = check["status"]
        training.push_to_hub &= check["status"] != "fault"
    summary = spine.finish(folder, config, summary)
    if check is not None:
        conclude(check, str(folder.path))
    return summary


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("reward", argv)


if __name__ == "__main__":
    raise SystemExit(main())
