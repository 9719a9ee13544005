"""The models of a run on paper: what is trained, what it is held to, what judges it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.lib.config.parse import Config
from recipes.lib.plan import meta_models
from recipes.lib.plan.model_shapes import Shapes, find_source, policy_shapes
from recipes.lib.trainers.trl import round_trained

SAMPLING_RECIPES = ("ppo", "rloo", "grpo")
WITH_REFERENCE = ("dpo", "kto")


@dataclass
class RunModels:
    """The models of a run.

    Args:
        trained: The module whose weights the optimizer moves; under PPO an ActorCritic.
        policy: The model itself; under PPO the policy in `trained`.
        reference: A frozen copy; None where the policy without its adapter is the reference.
        rewards: Reward models that are models of their own.
        source: Where the shapes of the policy come from.
    """

    trained: Any
    policy: Any
    reference: Any = None
    rewards: list[Any] = field(default_factory=list)
    source: Shapes | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """All models."""
        return [self.trained, *([self.reference] if self.reference else []), *self.rewards]


def make_run_models(config: Config, autocast: Any, configs: Path | None) -> RunModels:
    """Put the models of a recipe together on paper, as the recipe does it with real ones.

    Args:
        config: The parsed Config of a training recipe.
        autocast: Number format of mixed precision, or None.
        configs: Folder with configurations of runs that are still to be made.

    Returns:
        The models on the meta device.

    Raises:
        UserError: A model is not there.
    """
    args, training = config.model, config.training
    trusted = training.trust_remote_code
    source = policy_shapes(config, configs)
    own_adapter = _adapter(config, source)
    shape = source.config(trusted)
    is_reward = config.recipe == "reward"
    build = meta_models.classifier if is_reward else meta_models.causal_model
    model = build(shape, args, trusted)
    if config.recipe == "ppo":
        return _ppo_cast(config, model, own_adapter, source, configs)
    models = RunModels(model, model, source=source)
    if own_adapter is not None:
        models.trained = models.policy = meta_models.adapted(model, own_adapter)
        round_trained(models.policy, None if autocast is None else torch.bfloat16)
    elif (
        not training.precompute_ref_log_probs
        if config.recipe in WITH_REFERENCE
        else config.recipe in SAMPLING_RECIPES and training.beta != 0
    ):
        models.reference = copy.deepcopy(model).requires_grad_(False)
    if config.recipe in SAMPLING_RECIPES:
        _add_rewards(models, config, configs, shared=False)
    return models


def _adapter(config: Config, source: Shapes) -> Any:
    """The adapter that is trained: a new one, or the one that the run goes on with."""
    from recipes.lib.models.policies import lora_config

    task = "SEQ_CLS" if config.recipe == "reward" else "CAUSAL_LM"
    if config.model.use_peft and source.adapter is not None and config.recipe in ("ppo", "reward"):
        found = replace(source.adapter, inference_mode=False, task_type=task)
        if config.recipe == "reward":
            saved = {*(found.modules_to_save or []), "score"}
            found = replace(found, modules_to_save=sorted(saved))
        return found
    return lora_config(config.model, task)


def _ppo_cast(
    config: Config, model: Any, adapter: Any, source: Shapes, configs: Path | None
) -> RunModels:
    """As recipes.lib.ppo.roles.make_roles, without a weight."""
    from recipes.lib.models.adapters import POLICY, REFERENCE, VALUE, without_head
    from recipes.lib.ppo.actor_critic import (
        ActorCritic,
        disable_dropout,
        make_reference,
        make_value_head,
    )
    from recipes.lib.ppo.critic import chosen_critic

    args = config.training
    kind = chosen_critic(args, adapter is not None)
    critic = _critic_model(config, model, configs) if kind == "model" else None
    policy = model if adapter is None else meta_models.adapted(model, adapter)
    with torch.device("meta"):
        reference = make_reference(policy)
        trained = ActorCritic(policy, critic)
        adapters = trained.adapters
        if adapters is not None:
            if source.adapter is not None:
                adapters.add(REFERENCE, adapters.model.peft_config[POLICY], trainable=False)
            if kind == "adapter":
                trained.value_head = make_value_head(policy, hidden=False)
                name = args.critic_model_name_or_path
                found = find_source(name, configs=configs).adapter if name else None
                chosen = found or adapters.model.peft_config[POLICY]
                adapters.add(VALUE, without_head(chosen), trainable=True)
    if args.disable_dropout:
        disable_dropout(trained)
    models = RunModels(trained, policy, reference, source=source)
    _add_rewards(models, config, configs, shared=adapters is not None and args.share_backbone)
    return models


def _critic_model(config: Config, model: Any, configs: Path | None) -> Any:
    args = config.training
    if args.critic_model_name_or_path is None:
        return _full_classifier(model.config, model.dtype, config)
    source = find_source(args.critic_model_name_or_path, configs=configs)
    return _named_classifier(source, config).requires_grad_(True)


def _full_classifier(shape: Any, dtype: torch.dtype, config: Config) -> Any:
    plain = replace(
        config.model,
        dtype=str(dtype).removeprefix("torch."),
        load_in_4bit=False,
        load_in_8bit=False,
        attn_implementation=None,
    )
    return meta_models.classifier(shape, plain, config.training.trust_remote_code)


def _named_classifier(source: Shapes, config: Config) -> Any:
    shape = source.config(config.training.trust_remote_code)
    model = _full_classifier(shape, torch.float32, config)
    return model if source.adapter is None else meta_models.adapted(model, source.adapter)


def _add_rewards(models: RunModels, config: Config, configs: Path | None, *, shared: bool) -> None:
    from recipes.lib.models.adapters import without_head
    from recipes.lib.rewards.judge_models import read_settings
    from recipes.lib.rewards.loading import is_function_reference, is_judge
    from recipes.lib.rewards.shared_base import RewardRole

    for name in [*config.script.reward_funcs, *config.script.eval_reward_funcs]:
        if is_function_reference(name):
            continue
        if is_judge(name):
            settings = read_settings(name)
            if settings.endpoint is None:  # for its memory a classifier on the same trunk will do
                shape = find_source(settings.model, configs=configs).config(
                    config.training.trust_remote_code
                )
                dtype = meta_models.dtype_of(shape, settings)
                judge = _full_classifier(shape, dtype, config)
                models.rewards.append(judge.eval().requires_grad_(False))
            continue
        source = find_source(name, configs=configs)
        if shared and source.adapter is not None:
            adapters = models.trained.adapters
            number = sum(key.startswith("reward") for key in adapters.model.peft_config)
            with torch.device("meta"):
                adapters.add(f"reward{number}", without_head(source.adapter), trainable=False)
                size = models.policy.config.get_text_config().hidden_size
                head = {"weight": torch.empty(1, size)}
                role = RewardRole(adapters, f"reward{number}", head, 0)
            models.trained.add_module(f"score_{number}", role.score)
            continue
        model = _named_classifier(source, config)
        models.rewards.append(model.eval().requires_grad_(False))
