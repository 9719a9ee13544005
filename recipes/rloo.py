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

import time
from dataclasses import dataclass
from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.models.chat_template import TemplateArguments, set_chat_template
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.rewards.arguments import RewardArguments
from recipes.lib.runs.folder import RunArguments, check_folder, open_run

SHOWN = {"reward": "score", "kl": "kl", "completions/mean_length": "tokens"}


@dataclass(kw_only=True)
class RLOOArguments(RunArguments, DataArguments, RewardArguments, TemplateArguments, PlanArguments):
    """Keys of the recipe beside those of RLOOConfig and ModelConfig."""


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig

    from recipes.lib.trainers.batch_sizes import RLOOBatchConfig

    return RLOOArguments, RLOOBatchConfig, ModelConfig


def make_trainer(config: Config, train: Any, test: Any) -> tuple[Any, Any]:
    """TRL's trainer on the policy, with LoRA where it is asked for; and its rewards."""
    from trl import RLOOTrainer

    from recipes.lib.models.policies import load_policy, lora_config
    from recipes.lib.models.tokenizers import load_tokenizer
    from recipes.lib.trainers.row_fit import check_sampling
    from recipes.lib.trainers.sampled_rewards import load_rewards
    from recipes.lib.trainers.trl import make_trl_trainer

    training, model_args = config.training, config.model
    assert training is not None and model_args is not None
    name = model_args.model_name_or_path or ""
    trusted = training.trust_remote_code
    tokenizer = load_tokenizer(name, revision=model_args.model_revision, trust_remote_code=trusted)
    set_chat_template(tokenizer, config.script.chat_template)
    rewards = load_rewards(config.script.rewards(), training, tokenizer, train[0]["prompt"])
    trainer = make_trl_trainer(
        RLOOTrainer,
        load_policy(model_args, trust_remote_code=trusted),
        model_args,
        reward_funcs=rewards.functions,
        args=training,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=lora_config(model_args, "CAUSAL_LM"),
    )
    check_sampling(trainer)
    rewards.ends = trainer.eos_token_ids  # TRL stops at each of them
    return trainer, rewards


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
    """
    from recipes.lib.recipe.finish import checkpoint_of, finish, save_final
    from recipes.lib.runs.lineage import write_lineage
    from recipes.lib.trainers.batch_sizes import num_episodes
    from recipes.lib.trainers.progress import add_run_callbacks
    from recipes.lib.trainers.sampled_rewards import log_samples, summary_metrics

    start = time.monotonic()
    script, training, model = config.script, config.training, config.model
    assert training is not None and model is not None
    check_folder(config)
    train, test = load_splits(script, training.seed, ("prompt",))
    check_plan(config, test is not None)
    trainer, rewards = make_trainer(config, train, test)
    folder = open_run(config)
    add_run_callbacks(trainer, folder.path, "rloo", SHOWN)
    log_samples(trainer, rewards, folder.path)
    trainer.train(resume_from_checkpoint=checkpoint_of(folder, training))
    save_final(trainer, folder)
    summary: dict[str, Any] = {"recipe": "rloo"}
    if is_main_process():
        summary["episodes"] = num_episodes(training, trainer.state.global_step)
        summary |= summary_metrics(folder.path)
        data = script.data_names()
        told = {
            "reward_funcs": script.reward_funcs,
            "trust_remote_code": training.trust_remote_code,
        }
        write_lineage(folder.path, "rloo", model.model_name_or_path, data, **told)
    return finish(folder, summary | {"seconds": round(time.monotonic() - start, 1)})


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("rloo", argv)


if __name__ == "__main__":
    raise SystemExit(main())
