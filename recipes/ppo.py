"""PPO: trains a policy on its own completions against rewards, held near the model it began from.

    maximise  E[score(y)] - kl_coef * KL(policy || reference)   where  E[cost(y)] <= cost_limit

by clipped policy gradient with a critic. The KL is a reward of each token and not a loss, and the
reference is the model that the run started from.

Data: prompt (text or messages); further columns are handed on to the reward functions. With an
environment episodes are conversations with it; its rows say what it begins with.
Writes final/ (the policy), metrics.jsonl, samples.jsonl, summary.json and report.html.

    python -m recipes.ppo --config configs/quickstart/ppo.yaml
    accelerate launch --num_processes 2 -m recipes.ppo --config configs/quickstart/ppo.yaml

Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences, 2019, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.problems import PLACE
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.doctor.gate import CheckArguments, check_rewards
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import TemplateArguments
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.rewards.arguments import RewardArguments
from recipes.lib.runs.energy import EnergyArguments
from recipes.lib.runs.folder import RunArguments, check_folder

SHOWN = {"objective/scores": "score", "objective/kl": "kl", "completions/mean_length": "tokens"}
# Metrics whose last values the summary repeats, the score first, and what it calls them.
KEPT = {
    "objective/scores": "scores",
    "objective/rlhf_reward": "rlhf_reward",
    "objective/kl": "kl",
    "completions/mean_length": "completion_length",
    "objective/cost": "cost",
    "environment/return": "return",
    "environment/turns": "turns",
    "objective/cost_multiplier": "cost_multiplier",
}


@dataclass(kw_only=True)
class PPOArguments(
    RunArguments,
    DataArguments,
    RewardArguments,
    TemplateArguments,
    PlanArguments,
    EnergyArguments,
    CheckArguments,
):
    """Keys of the recipe beside those of PPOConfig and ModelConfig."""

    reward_funcs: list[str] = option(
        list,
        "Rewards: runs, folders or Hub ids of reward models, functions as file.py:function, judges "
        "as judge.yaml, or names of TRL's such as accuracy_reward; none where an environment pays.",
    )
    cost_funcs: list[str] = option(
        list, "Costs, written as rewards are; their sum is kept within cost_limit."
    )
    environment: str | None = option(
        None,
        "Class as file.py:Class with reset(**row) and step(text): episodes are conversations with "
        "it. reward_timeout and reward_retries count for it, too.",
    )

    tools: list[str] = option(
        list,
        "Functions as file.py:function, with type hints and a docstring, that the policy may call "
        "in the format of its chat template; a turn that calls none ends the episode.",
    )

    def asked(self) -> list[str]:
        """All that score completions, by name."""
        return [*super().asked(), *self.cost_funcs]

    def worlds(self) -> Any:
        """The environment as PPOTrainer takes it; None where there is none."""
        if self.environment is None:
            return None
        from recipes.lib.environments.worlds import load_worlds

        return load_worlds(self.environment, self.reward_timeout, self.reward_retries)

    def callable_tools(self) -> list[Any]:
        """The tools as PPOTrainer takes them."""
        from recipes.lib.environments.tools import load_tools

        return load_tools(self.tools)

    def costs(self) -> list[Any]:
        """The costs as PPOTrainer takes them; the least of an ensemble is no careful cost."""
        from recipes.lib.rewards.loading import is_function_reference

        return [self._one(n) if is_function_reference(n) else n for n in self.cost_funcs]


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig

    from recipes.lib.ppo.config import PPOConfig

    return PPOArguments, PPOConfig, ModelConfig


def load_rows(script: PPOArguments, seed: int) -> tuple[Any, Any]:
    """Training and test rows; of an environment that needs none, one that says nothing."""
    if script.environment is None:
        return load_splits(script, seed, ("prompt",))
    if script.dataset_name or script.datasets:
        return load_splits(script, seed, ())
    from datasets import Dataset

    return Dataset.from_list([{PLACE: "the environment"}]), None


def make_trainer(config: Config, train: Any, test: Any) -> Any:
    """The trainer on the policy, with LoRA where it is asked for."""
    from recipes.lib.data.tokenizer_fit import fit_to_tokenizer
    from recipes.lib.distributed.shards import load_unsharded
    from recipes.lib.models.policies import continues, load_adapted_policy, load_policy, lora_config
    from recipes.lib.ppo.trainer import PPOTrainer
    from recipes.lib.recipe.spine import policy_tokenizer

    tokenizer, script = policy_tokenizer(config), config.script
    own = (tokenizer, tokenizer.chat_template, script.label, script.on_bad_rows, ("prompt",))
    if "prompt" in train.column_names:
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
        cost_funcs=config.script.costs(),
        eval_reward_funcs=script.held_out(config.training, test),
        environment=script.worlds(),
        tools=script.callable_tools(),
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
    from recipes.lib.ppo.cost_controller import refuse_half_a_limit
    from recipes.lib.ppo.playing import refuse_turns_alone
    from recipes.lib.ppo.roles import describe_roles
    from recipes.lib.recipe import spine
    from recipes.lib.rewards.judge import judge_counts

    script, training = config.script, config.training
    if not script.reward_funcs and script.environment is None:
        raise UserError(
            "reward_funcs=[] names no reward; give a reward model, file.py:function, or an "
            "environment that pays."
        )
    refuse_half_a_limit(script.cost_funcs, training.cost_limit)
    refuse_turns_alone(config.values, bool(script.environment or script.tools))
    check_folder(config)
    train, test = load_rows(script, training.seed)
    check_plan(config, test is not None)
    check_rewards(config)
    trainer = make_trainer(config, train, test)
    folder = spine.start_run(config, trainer, SHOWN)
    spine.train(trainer, folder)
    spine.save_final(trainer, folder)
    summary: dict[str, Any] = {"episodes": training.total_episodes}
    summary |= judge_counts(trainer.collector.asked)
    facts: dict[str, Any] = {"reward_funcs": script.reward_funcs}
    if script.environment:
        facts["environment"] = script.environment
    if script.cost_funcs:
        facts["cost_funcs"] = script.cost_funcs
    if training.feedback:
        facts["feedback"] = training.feedback
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
