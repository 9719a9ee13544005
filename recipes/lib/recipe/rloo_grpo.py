"""The spine of RLOO and GRPO: TRL's trainers that sample, on this project's rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.tokenizer_fit import fit_to_tokenizer
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.doctor.gate import CheckArguments, check_rewards
from recipes.lib.environments.tools import load_tools
from recipes.lib.models.chat_template import TemplateArguments
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe import spine
from recipes.lib.rewards.arguments import RewardArguments
from recipes.lib.rewards.held_out import parting
from recipes.lib.rewards.judge import judge_counts
from recipes.lib.rewards.loading import load_function
from recipes.lib.runs.energy import EnergyArguments
from recipes.lib.runs.folder import RunArguments, check_folder
from recipes.lib.trainers.batch_sizes import num_episodes
from recipes.lib.trainers.row_fit import check_sampling
from recipes.lib.trainers.sampled_rewards import load_rewards, log_samples

SHOWN = {"reward": "score", "kl": "kl", "completions/mean_length": "tokens"}
# Metrics whose last values the summary repeats, the score first, and what it calls them.
KEPT = {"reward": "scores", "kl": "kl_per_token", "completions/mean_length": "completion_length"}


@dataclass(kw_only=True)
class SamplingArguments(
    RunArguments,
    DataArguments,
    RewardArguments,
    TemplateArguments,
    PlanArguments,
    EnergyArguments,
    CheckArguments,
):
    """Keys of RLOO and GRPO beside those of TRL's configurations."""

    SHOWS_PICTURES: ClassVar[bool] = False


@dataclass(kw_only=True)
class GRPOArguments(SamplingArguments):
    """Keys of GRPO, whose trainer plays with environments and tools by itself."""

    SHOWS_PICTURES: ClassVar[bool] = True

    environment: str | None = option(
        None,
        "Class as file.py:Class for TRL's environment_factory: reset(**row), and public methods "
        "that the policy may call as tools.",
    )
    tools: list[str] = option(
        list, "Functions as file.py:function that the policy may call, by TRL's loop."
    )

    def for_trl(self) -> dict[str, Any]:
        """Both as TRL's trainer takes them; nothing where there are none."""
        given: dict[str, Any] = {}
        if self.environment is not None:
            given["environment_factory"] = load_function(self.environment)
        if self.tools:
            given["tools"] = load_tools(self.tools)
        return given


def train_on_samples(config: Config, trainer_class: Any, **more: Any) -> dict[str, Any]:
    """Train, save.

    Args:
        config: The parsed configuration.
        trainer_class: TRL's RLOOTrainer or GRPOTrainer.
        more: Further arguments of that class, by which completions become conversations.

    Returns:
        The summary.

    Raises:
        UserError: The data, a model, a reward or the run folder cannot be used.
        FaultError: A reward model is at fault.
    """
    script, training = config.script, config.training
    check_folder(config)
    if script.SHOWS_PICTURES:
        spine.look_for_pictures(config)
    train, test = load_splits(script, training.seed, ("prompt",))
    check_plan(config, test is not None)
    check_rewards(config)
    tokenizer = spine.policy_tokenizer(config)
    own = (tokenizer, tokenizer.chat_template, script.label, script.on_bad_rows, ("prompt",))
    train, test = (fit_to_tokenizer(rows, *own) for rows in (train, test))
    held_out = script.held_out(training, test)
    rewards = load_rewards(script.rewards(), training, tokenizer, train[0]["prompt"], held_out)
    trainer = spine.make_trainer(
        trainer_class, config, tokenizer, train, test, reward_funcs=rewards.functions, **more
    )
    check_sampling(trainer)
    rewards.are_conversations = bool(more)
    rewards.ends = trainer.eos_token_ids  # TRL stops at each of them
    run = spine.start_run(config, trainer, SHOWN)
    log_samples(trainer, rewards, run.path)
    spine.train(trainer, run)
    spine.save_final(trainer, run)
    summary: dict[str, Any] = judge_counts([*rewards.asked, *rewards.held_out])
    if is_main_process():
        summary["episodes"] = num_episodes(training, trainer.state.global_step)
        summary |= spine.last_logs(run, KEPT)
        if found := parting(trainer.state.log_history):
            summary["warnings"] = [found | {"episode": num_episodes(training, found["step"])}]
    return spine.finish(run, config, summary, reward_funcs=script.reward_funcs)
