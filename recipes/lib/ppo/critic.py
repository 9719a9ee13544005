"""The critic: where it comes from, how fast it learns, how it is kept."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from recipes.lib.errors import UserError
from recipes.lib.models.adapters import POLICY, VALUE
from recipes.lib.models.classifiers import classifier_on_trunk, load_reward_model
from recipes.lib.models.folders import is_adapter, resolve_model
from recipes.lib.ppo.actor_critic import ActorCritic, make_value_head
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.rewards.shared_base import check_head, check_same_base

ADAPTER = "adapter."  # before the names of the critic's adapter weights
VALUE_WEIGHTS = "value.safetensors"
# What the critic knows lags behind the policy, so it learns faster: docs/log.md.
CRITIC_RATE_FACTOR = 3.0
VALUE_UNITS = ("value_offset", "value_scale")


def chosen_critic(args: PPOConfig, under_lora: bool) -> str:
    """Which critic a run has.

    Args:
        args: The configuration.
        under_lora: Whether an adapter is trained.

    Returns:
        What was asked for. Else the adapter, which learns better than the head and costs little
        memory (docs/benchmarks/critics.md); without LoRA the head, which costs least, or a model
        where one is named.
    """
    if args.critic is not None:
        return args.critic
    if under_lora:
        return "adapter"
    return "head" if args.critic_model_name_or_path is None else "model"


def make_critic(policy: Any, args: PPOConfig) -> Any:
    """Make the critic that the configuration asks for.

    Args:
        policy: The policy before an adapter came on it.
        args: The configuration.

    Returns:
        None for a critic on the policy's trunk; else a sequence classifier with one output, from a
        reward model or from the policy's trunk with a head of zeros, so that the first values are
        0 and not noise.

    Raises:
        UserError: The policy is quantized and no critic model is named, or the vocabularies differ.
    """
    if args.critic != "model":
        return None
    if args.critic_model_name_or_path is not None:
        critic, _ = load_reward_model(
            args.critic_model_name_or_path, trust_remote_code=args.trust_remote_code
        )
        if (number := critic.config.num_labels) != 1:
            raise UserError(
                f"critic_model_name_or_path={args.critic_model_name_or_path} has {number} outputs "
                "and a critic has one; name a reward model of one aspect, without an ensemble."
            )
        theirs, ours = critic.config.get_text_config(), policy.config.get_text_config()
        if theirs.vocab_size != ours.vocab_size:
            raise UserError(
                f"critic_model_name_or_path={args.critic_model_name_or_path} has a vocabulary of "
                f"{theirs.vocab_size} tokens, the policy {ours.vocab_size}; the critic reads the "
                "policy's tokens, so use a model with the same tokenizer."
            )
        return critic.requires_grad_(True)
    if isinstance(policy, PeftModel) or getattr(policy, "is_quantized", False):
        raise UserError(
            "critic=model cannot copy a policy that is quantized or has an adapter; use "
            "critic=adapter, or name a reward model as critic_model_name_or_path."
        )
    name = policy.config._name_or_path
    critic = classifier_on_trunk(policy, name, "critic", trust_remote_code=args.trust_remote_code)
    critic.score.weight.data.zero_()
    return critic


def add_value_adapter(actor_critic: ActorCritic, args: PPOConfig) -> None:
    """Put the critic's adapter on the policy's base; that of a reward model brings its head along.

    Args:
        actor_critic: The policy under LoRA, with a value head of zeros.
        args: The configuration.

    Raises:
        UserError: The policy is trained whole, or the reward adapter does not fit it.
    """
    adapters, given = actor_critic.adapters, args.critic_model_name_or_path
    if adapters is None:
        raise UserError("critic=adapter needs LoRA; set use_peft, or use critic=head or model.")
    actor_critic.value_head = make_value_head(actor_critic.policy, hidden=False)
    if given is None:
        adapters.add(VALUE, adapters.model.peft_config[POLICY], trainable=True)
        return
    path = resolve_model(given)
    if not is_adapter(path):
        raise UserError(
            f"critic_model_name_or_path={given} is no adapter; use critic=model for a whole model."
        )
    check_same_base(adapters, path, "critic_model_name_or_path", given)
    head = adapters.load(VALUE, path, trainable=True)
    check_head(head, path, "critic_model_name_or_path", given)
    last = actor_critic.value_head[0]
    last.load_state_dict(last.state_dict() | {name: t.float() for name, t in head.items()})


def parameter_groups(
    model: nn.Module, actor_critic: ActorCritic, decayed: Collection[str], args: PPOConfig
) -> list[dict[str, Any]]:
    """Groups for the optimizer: policy and critic, each with and without weight decay.

    Args:
        model: The module whose parameters are trained, as the launcher has wrapped it.
        actor_critic: The same module unwrapped.
        decayed: Names of the parameters that decay.
        args: The configuration.

    Returns:
        The groups that are not empty.
    """
    of_critic = {id(parameter) for parameter in actor_critic.critic_parameters()}
    faster = CRITIC_RATE_FACTOR * args.learning_rate
    critic_rate = args.critic_learning_rate if args.critic_learning_rate is not None else faster
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (id(parameter) in of_critic, name in decayed)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": args.weight_decay if is_decayed else 0.0,
            "lr": critic_rate if is_critic else args.learning_rate,
        }
        for (is_critic, is_decayed), parameters in groups.items()
    ]


def save_value_weights(actor_critic: ActorCritic, folder: Path) -> None:
    """Write the critic's weights beside the policy of a checkpoint."""
    state = {name: getattr(actor_critic, name) for name in VALUE_UNITS}
    state |= actor_critic.critic_module.state_dict()
    if (adapters := actor_critic.value_adapters) is not None:
        state |= {ADAPTER + name: tensor for name, tensor in adapters.state(VALUE).items()}
    save_file({name: t.contiguous() for name, t in state.items()}, folder / VALUE_WEIGHTS)


def load_value_weights(actor_critic: ActorCritic, folder: Path) -> None:
    """Read the critic's weights back.

    Raises:
        UserError: They are those of a critic of another kind.
    """
    weights = load_file(folder / VALUE_WEIGHTS)
    for name in VALUE_UNITS:
        getattr(actor_critic, name).copy_(weights.pop(name))
    of_adapter = {n: weights.pop(n) for n in list(weights) if n.startswith(ADAPTER)}
    module, adapters = actor_critic.critic_module, actor_critic.value_adapters
    fits = set(weights) == set(module.state_dict())
    if not fits or bool(of_adapter) != (adapters is not None):
        raise UserError(
            f"{folder} holds the critic of a run with another key critic; resume with the "
            "configuration of that run."
        )
    module.load_state_dict(weights)
    if adapters is not None:
        plain = {name.removeprefix(ADAPTER): tensor for name, tensor in of_adapter.items()}
        adapters.load_state(VALUE, plain)
