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

import time
from dataclasses import dataclass
from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import TemplateArguments, set_chat_template
from recipes.lib.plan.check import PlanArguments, check_plan
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.rewards.arguments import RewardArguments
from recipes.lib.runs.files import read_jsonl
from recipes.lib.runs.folder import RunArguments, check_folder, open_run

SHOWN = {"objective/scores": "score", "objective/kl": "kl", "objective/completion_length": "tokens"}
# Numbers of the last rollouts that the summary repeats, and how many rollouts they are the mean of.
KEPT = ("objective/scores", "objective/rlhf_reward", "objective/kl", "objective/completion_length")
NUM_LAST = 3


@dataclass(kw_only=True)
class PPOArguments(RunArguments, DataArguments, RewardArguments, TemplateArguments, PlanArguments):
    """Keys of the recipe beside those of PPOConfig and ModelConfig."""


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig

    from recipes.lib.ppo.config import PPOConfig

    return PPOArguments, PPOConfig, ModelConfig


def make_trainer(config: Config, train: Any, test: Any) -> Any:
    """The trainer on the policy, with LoRA where it is asked for."""
    from recipes.lib.distributed.shards import loads_whole
    from recipes.lib.models.policies import continues, load_adapted_policy, load_policy, lora_config
    from recipes.lib.models.tokenizers import load_tokenizer
    from recipes.lib.ppo.trainer import PPOTrainer

    assert config.training is not None and config.model is not None
    trusted = {"trust_remote_code": config.training.trust_remote_code}
    tokenizer = load_tokenizer(
        config.model.model_name_or_path or "", revision=config.model.model_revision, **trusted
    )
    set_chat_template(tokenizer, config.script.chat_template)
    going_on = continues(config.model)
    load = load_adapted_policy if going_on else load_policy
    with loads_whole(config.training):
        policy = load(config.model, **trusted)
    return PPOTrainer(
        model=policy,
        reward_funcs=config.script.rewards(),
        args=config.training,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=None if going_on else lora_config(config.model, "CAUSAL_LM"),
    )


def last_rollouts(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last rollouts, and the score of the first one to compare with."""
    rows = [row for row in metrics if "objective/scores" in row]
    last = rows[-NUM_LAST:]
    means = {name.partition("/")[2]: sum(r[name] for r in last) / len(last) for name in KEPT}
    return {"first_scores": rows[0]["objective/scores"]} | means


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
    """
    from recipes.lib.ppo.roles import describe_roles
    from recipes.lib.recipe.finish import checkpoint_of, finish, save_final
    from recipes.lib.runs.lineage import write_lineage
    from recipes.lib.trainers.progress import add_run_callbacks

    start = time.monotonic()
    script, training, model = config.script, config.training, config.model
    assert training is not None and model is not None
    if not script.reward_funcs:
        raise UserError("reward_funcs=[] names no reward; give a reward model or file.py:function.")
    check_folder(config)
    train, test = load_splits(script, training.seed, ("prompt",))
    check_plan(config, test is not None)
    trainer = make_trainer(config, train, test)
    folder = open_run(config)
    add_run_callbacks(trainer, folder.path, "ppo", SHOWN)
    trainer.train(resume_from_checkpoint=checkpoint_of(folder, training))
    save_final(trainer, folder)
    summary: dict[str, Any] = {"recipe": "ppo", "episodes": training.total_episodes}
    if is_main_process():
        summary |= last_rollouts(read_jsonl(folder.path / "metrics.jsonl"))
        summary["warnings"] = trainer.health.warnings
        data = script.data_names()
        more = {"reward_funcs": script.reward_funcs, "roles": describe_roles(trainer)}
        more["trust_remote_code"] = training.trust_remote_code
        write_lineage(folder.path, "ppo", model.model_name_or_path, data, **more)
    return finish(folder, summary | {"seconds": round(time.monotonic() - start, 1)})


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("ppo", argv)


if __name__ == "__main__":
    raise SystemExit(main())
