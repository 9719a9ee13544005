"""Reward modelling: trains a language model with a score head on what people say of completions.

Loss: of pairs -log sigmoid(score(chosen) - score(rejected)), the Bradley-Terry likelihood; of ranks
Plackett and Luce's, with ties Davidson's; of ratings proportional odds or squared errors, of thumbs
logistic, with an offset for each annotator.

Data: chosen and rejected, with a prompt or containing it (text or messages), and perhaps margin and
weight; prompt, completions and ranks; prompt, completion and rating, with annotator and aspect;
prompt, completion and label. `datasets`, or a feedback project, bring several kinds. A test pair's
`noise` column is the probability that its label contradicts the true order.
Writes final/ (a full model, or an adapter with its score head), metrics.jsonl, samples.jsonl with
the scores of every test pair, summary.json with the accuracy beside its ceiling and beside a
bag-of-words model of the same split (with frozen_features a regression on the base, too), and
check.json with what the check of it found; a fault ends the finished run with exit code 3.

    python -m recipes.reward --config configs/quickstart/reward.yaml
    accelerate launch --num_processes 2 -m recipes.reward --config configs/quickstart/reward.yaml

Source: Ouyang et al., Training language models to follow instructions, 2022, equation 1, with one
pair per comparison; of the other kinds recipes/lib/trainers/answer_losses.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.answers import (
    BESIDE_ANSWERS,
    answer_columns,
    kinds_of,
    most_completions,
    ordered_pairs,
)
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import BESIDE
from recipes.lib.data.reading import ANSWER_FILES
from recipes.lib.data.streaming import Rows, load_rows
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.doctor.gate import CheckArguments, examined
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import TemplateArguments, check_template, set_chat_template
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.energy import EnergyArguments
from recipes.lib.runs.folder import Run, RunArguments
from recipes.lib.trainers.answer_survey import AnswerArguments, check_answers

FROZEN = "frozen_features"  # folder of the reward model that is a regression on the base


@dataclass(kw_only=True)
class RewardModelArguments(
    RunArguments,
    DataArguments,
    AnswerArguments,
    TemplateArguments,
    PlanArguments,
    EnergyArguments,
    CheckArguments,
):
    """Keys of the recipe beside those of RewardConfig and ModelConfig."""

    FEEDBACK: ClassVar[tuple[str, ...]] = ANSWER_FILES

    global_batch_size: int | None = option(
        None, "Rows in one optimizer step over all processes; sets accumulation."
    )
    scoring_batch_size: int = option(64, "Texts at a time when the test pairs are scored.")
    frozen_features: bool = option(
        False,
        "Also fit a logistic regression on the starting model's hidden states, and save it as a "
        "reward model in frozen_features/.",
    )


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig, RewardConfig

    return RewardModelArguments, RewardConfig, ModelConfig


def load_answers(script: RewardModelArguments, training: Any) -> Rows:
    """Load training and test answers.

    Raises:
        UserError: As load_rows; or there are no test rows.
    """
    script.reads_answers = True
    rows = load_rows(script, training, answer_columns, (*BESIDE, *BESIDE_ANSWERS))
    if rows.test is None:
        raise UserError(
            "test_fraction=0.0: a reward model is worth its accuracy on pairs it has not seen; "
            "set test_fraction (0.1 is usual) or test_dataset_name."
        )
    columns = {*rows.known.column_names}
    if rows.stream is not None and (kinds_of(columns) != ["pair"] or "aspect" in columns):
        raise UserError(
            "streaming=true: ranks, ratings, thumbs and aspects are looked at before the run; "
            "leave it out, or stream pairs."
        )
    return rows


def make_trainer(config: Config, rows: Rows) -> Any:
    """TRL's trainer on a classifier whose score head alone is new, with LoRA if asked for."""
    from transformers import set_seed

    from recipes.lib.models.chat_template import read_template
    from recipes.lib.models.classifiers import load_adapted_classifier, load_reward_model
    from recipes.lib.models.policies import continues, lora_config
    from recipes.lib.models.tokenizers import load_tokenizer
    from recipes.lib.recipe import spine
    from recipes.lib.trainers.answer_survey import survey_answers
    from recipes.lib.trainers.answers import AnswerTrainer, prepare_answers

    script, training, model_args = config.script, config.training, config.model
    survey = survey_answers(rows.known, rows.test, script, training.seed)
    name, going_on = model_args.model_name_or_path or "", continues(model_args)
    adapter = None if going_on else lora_config(model_args, "SEQ_CLS")
    trusted = training.trust_remote_code
    if training.chat_template_path is not None:
        read_template(training.chat_template_path)
    set_seed(training.seed)  # the new head is drawn while loading
    if going_on:
        model: Any = load_adapted_classifier(model_args, survey.heads, trust_remote_code=trusted)
        tokenizer = load_tokenizer(name, trust_remote_code=trusted)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    else:
        model, tokenizer = load_reward_model(
            name,
            str(model_args.dtype),
            new_head=True,
            heads=survey.heads,
            model_args=model_args,
            trust_remote_code=trusted,
        )
    set_chat_template(tokenizer, script.chat_template, training.chat_template_path)
    template = tokenizer.chat_template or training.chat_template_path
    first = rows.known[0]
    spoken = "chosen" if first.get("chosen") is not None else "prompt"
    check_template(first, spoken, bool(template))

    def prepare(some: Any, known: Any) -> Any:
        columns, is_training = known.column_names, some is not rows.test
        return prepare_answers(survey, tokenizer, some, columns, is_training=is_training)

    own = {"model": model, "peft_config": adapter, "survey": survey}
    return spine.make_row_trainer(AnswerTrainer, config, tokenizer, rows, prepare, **own)


def yardsticks(config: Config, trainer: Any, pairs: Any, folder: Run) -> dict[str, float]:
    """Accuracies of a bag of words, and of the regression on the starting model, which is saved."""
    from recipes.lib.distributed.shards import load_unsharded
    from recipes.lib.evaluation.pair_scores import bag_of_words_accuracy, frozen_features_accuracy

    script = config.script
    found = {"accuracy_bag_of_words": bag_of_words_accuracy(*pairs)}
    if script.frozen_features:
        template = trainer.processing_class.chat_template
        own = (*pairs, folder.path / FROZEN, script.scoring_batch_size)
        trusted = {"trust_remote_code": config.training.trust_remote_code}
        with load_unsharded(config.training):
            accuracy = frozen_features_accuracy(config.model, template, *own, **trusted)
        found["accuracy_frozen_features"] = accuracy
    return found


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, save, score the test pairs, and examine what was saved.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: accuracies in 0..1, the margin in units of the score.

    Raises:
        UserError: The data, the model or the run folder cannot be used.
        FaultError: The reward model is at fault; the run is whole.
    """
    from recipes.lib.distributed.shards import unsharded_model
    from recipes.lib.evaluation.pair_scores import score_shares
    from recipes.lib.recipe import spine

    script, training = config.script, config.training
    check_answers(script)
    spine.check_start(config)
    rows = load_answers(script, training)
    check_plan(config, num_completions=most_completions(rows.known))
    trainer = make_trainer(config, rows)
    test: Any = ordered_pairs(rows.test)
    if test is None:
        raise UserError(
            "test_fraction: the test rows are ties alone, or of one value, and order no two "
            "completions; hold more out, or name others as test_dataset_name."
        )
    folder = spine.start_run(config, trainer, {"loss": "loss", "accuracy": "accuracy"})
    rows.begin()
    summary = spine.train(trainer, folder)
    trainer.take_beside_off()
    if trainer.survey.is_plain:
        spine.note_guessing(trainer, math.log(2))
    spine.save_final(trainer, folder)
    with unsharded_model(trainer, trained=True) as model:
        scored = score_shares(trainer, model, test, script.scoring_batch_size)
    pairs = ordered_pairs(rows.known) if is_main_process() else None, test
    if is_main_process():
        folder.write_samples(scored)
        numbers = spine.pair_numbers(scored, test)
        margin = numbers.pop("margin")
        summary |= numbers | yardsticks(config, trainer, pairs, folder)
        summary["margin"] = margin
    del trainer, model  # the check loads what was saved
    check = partial(examined, config, str(folder.path), pairs)
    return spine.finish(folder, config, summary, check)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("reward", argv)


if __name__ == "__main__":
    raise SystemExit(main())
