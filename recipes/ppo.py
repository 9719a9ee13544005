"""PPO: trains a policy on its own completions against rewards, held near the model it began from.

    maximise  E[score(y)] - kl_coef * KL(policy || reference)

by clipped policy gradient with a critic. The KL is a reward of each token and not a loss, and the
reference is the model that the run started from.

Data: prompt (text or messages); further columns are handed on to the reward functions.
Writes final/ (the policy), metrics.jsonl, samples.jsonl, summary.json and report.html.

    python -m recipes.ppo --config configs/quickstart/ppo.yaml
    accelerate launch --num_processes 2 -m recipes.ppo --config configs/quickstart/ppo.yaml

Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences, 2019, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.doctor.gate import CheckArguments, check_rewards
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import TemplateArguments
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.rewards.arguments import RewardArguments
from recipes.lib.runs.folder import RunArguments, check_folder

SHOWN = {"objective/scores": "score", "objective/kl": "kl", "completions/mean_length": "tokens"}
# Metrics whose last values the summary repeats, the score first, and what it calls them.
KEPT = {
    "objective/scores": "scores",
    "objective/rlhf_reward": "rlhf_reward",
    "objective/kl": "kl",
    "completions/mean_length": "completion_length",
}


@dataclass(kw_only=True)
class PPOArguments(
    RunArguments, DataArguments, RewardArguments, TemplateArguments, PlanArguments, CheckArguments
):
    """Keys of the recipe beside those of PPOConfig and ModelConfig."""


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig

    from recipes.lib.ppo.config import PPOConfig

    return PPOArguments, PPOConfig, ModelConfig


def make_trainer(config: Config, train: Any, test: Any) -> Any:
    """The trainer on the policy, with LoRA where it is asked for."""
    from recipes.lib.data.tokenizer_fit import fit_to_tokenizer
    from recipes.lib.distributed.shards import load_unsharded
    from recipes.lib.models.policies import continues, load_adapted_policy, load_policy, lora_config
    from recipes.lib.ppo.trainer import PPOTrainer
    from recipes.lib.recipe.spine import policy_tokenizer

    tokenizer, script = policy_tokenizer(config), config.script
    own = (tokenizer, tokenizer.chat_template, script.label, script.on_bad_rows, ("prompt",))
    train, test = (fit_to_tokenizer(rows, *own) for rows in (train, test))
    going_on = continues(config.model)
    load = load_adapted_policy if going_on else load_policy
    with load_unsharded(config.training):
        policy = load(config.model, trust_remote_code=config.training.trust_remote_code)
    return PPOTrainer(
        model=policy,
        reward_funcs=config.script.rewards(),
        args=config.training,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=None if going_on else lora_config(config.model, "CAUSAL_LM"),
        eval_reward_funcs=script.held_out(config.training, test),
    )


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, save.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: scores, KL (nats per completion) and completion length (tokens) as means over
        the last rollouts, episodes, seconds, and the warnings that were given.

    Raises:
        UserError: The data, a model, a reward or the run folder cannot be used.
        FaultError: A reward model is at fault.
    """
    from recipes.lib.ppo.roles import describe_roles
    from recipes.lib.recipe import spine
    from recipes.lib.rewards.judge import judge_counts

    script, training = config.script, config.training
    if not script.reward_funcs:
        raise UserError("reward_funcs=[] names no reward; give a reward model or file.py:function.")
    check_folder(config)
    train, test = load_splits(script, training.seed, ("prompt",))
    check_plan(config, test is not None)
    check_rewards(config)
    trainer = make_trainer(config, train, test)
    folder = spine.start_run(config, trainer, SHOWN)
    spine.train(trainer, folder)
    spine.save_final(trainer, folder)
    summary: dict[str, Any] = {"episodes": training.total_episodes}
    summary |= judge_counts([*trainer.collector.functions, *trainer.collector.held_out])
    facts: dict[str, Any] = {"reward_funcs": script.reward_funcs}
    if is_main_process():
        summary |= spine.last_logs(folder, KEPT)
        summary["warnings"] = trainer.health.warnings
        facts["roles"] = describe_roles(trainer)
    return spine.finish(folder, config, summary, **facts)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("ppo", argv)


if __name__ == "__main__":
    raise SystemExit(main())
