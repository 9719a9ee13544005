"""What each role of a run is made of, for the lineage."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from recipes.lib.models.adapters import POLICY, REFERENCE, VALUE, Adapters
from recipes.lib.models.forward import base_model
from recipes.lib.rewards.reward_models import RewardModel
from recipes.lib.rewards.shared_base import RewardRole


def roles_of(trainer: Any) -> dict[str, str]:
    """Say of every role of a PPOTrainer what it is, in which number format, and whether it learns.

    Args:
        trainer: The trainer.

    Returns:
        A phrase for each of base, policy, reference, value and the reward models.
    """
    module = trainer.actor_critic
    adapters = module.adapters
    return {
        "base": _base(base_model(module.policy)),
        "policy": f"{_adapter(adapters, POLICY) if adapters else 'whole model'}, trained",
        "reference": _reference(trainer),
        "value": _value(module),
    } | _rewards(trainer.collector.functions)


def _base(model: Any) -> str:
    form = str(model.dtype).removeprefix("torch.")
    if getattr(model, "is_loaded_in_4bit", False):
        config = model.config.quantization_config
        double = ", double" if config.bnb_4bit_use_double_quant else ""
        return f"{form}, of it 4 bit ({config.bnb_4bit_quant_type}{double})"
    return f"{form}, of it 8 bit" if getattr(model, "is_loaded_in_8bit", False) else form


def _reference(trainer: Any) -> str:
    adapters = trainer.actor_critic.adapters
    if trainer.reference is not None:
        return f"copy of the policy at the start in {_formats(trainer.reference.parameters())}"
    if REFERENCE in adapters.model.peft_config:
        return _adapter(adapters, REFERENCE)
    return "base without the adapter"


def _value(module: Any) -> str:
    if module.critic is not None:
        return f"model of its own in {_formats(module.critic.parameters())}, trained"
    head = f"head in {_formats(module.value_head.parameters())}, trained"
    return f"{_adapter(module.adapters, VALUE)}, {head}" if module.has_value_adapter else head


def _rewards(functions: Iterable[Any]) -> dict[str, str]:
    said = {}
    for function in functions:
        if isinstance(function, RewardModel):
            model = function.model
            if isinstance(model, RewardRole):
                head = _formats(model.score.parameters())
                said[model.name] = f"{_adapter(model.adapters, model.name)}, head in {head}"
            else:
                formats = _formats(model.parameters())
                said[function.__name__] = f"model of its own in {formats}"
    return said


def _adapter(adapters: Adapters, name: str) -> str:
    return f"adapter in {_formats(adapters.parameters(name))}"


def _formats(tensors: Iterable[Tensor]) -> str:
    return " and ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
