"""From a model by name or by value to policy, critic and reference; and where each came from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.lib.errors import UserError, one_sentence
from recipes.lib.models.adapter_folders import WEIGHTS
from recipes.lib.models.adapters import POLICY, REFERENCE, VALUE, Adapters
from recipes.lib.models.cpu_linear import use_fast_products
from recipes.lib.models.forward import base_model
from recipes.lib.ppo.actor_critic import ActorCritic, disable_dropout, make_reference
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.critic import add_value_adapter, chosen_critic, make_critic
from recipes.lib.rewards.reward_models import RewardModel
from recipes.lib.rewards.shared_base import RewardRole


def load_model_and_tokenizer(
    model: Any, processing_class: Any, quantization_config: Any, *, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load the policy and its tokenizer where they were given by name.

    Args:
        model: Causal language model, or its folder or Hub id.
        processing_class: Its tokenizer; None for the one that lies beside it.
        quantization_config: For a model given by name.
        trust_remote_code: Whether code beside what is given by name may run.

    Returns:
        Model and tokenizer.

    Raises:
        UserError: The model carries an adapter that PEFT does not know of, or several.
    """
    if isinstance(model, PeftModel):
        if list(model.peft_config) != [POLICY]:
            raise UserError(
                f"model has the adapters {', '.join(model.peft_config)}; give it with one, called "
                f"{POLICY}, which is then trained on."
            )
        name = model.get_base_model().name_or_path
    else:
        name = model if isinstance(model, str) else model.config._name_or_path
    if isinstance(model, str):
        model = AutoModelForCausalLM.from_pretrained(
            model,
            quantization_config=quantization_config,
            dtype="auto",
            use_safetensors=True,  # other formats can run code
            trust_remote_code=trust_remote_code,
        )
    if not isinstance(model, PeftModel) and getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"model={name} is an adapter that PEFT has not wrapped; load its base, put it on with "
            "PeftModel.from_pretrained, and give that to train it on."
        )
    if processing_class is None:
        processing_class = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    return model, processing_class


def make_roles(
    policy: Any, args: PPOConfig, peft_config: PeftConfig | None
) -> tuple[ActorCritic, Any]:
    """Make what is trained and what it is held to.

    Args:
        policy: The model that the run starts from; the adapter of a PeftModel is trained on, and a
            frozen copy of it is the reference.
        args: The configuration.
        peft_config: New adapter to train instead of the whole model.

    Returns:
        Policy and critic as one module, and the reference (None: an adapter, or the bare base).

    Raises:
        UserError: A role cannot be made.
    """
    goes_on = isinstance(policy, PeftModel)
    if goes_on and peft_config is not None:
        raise UserError(
            "model is a PeftModel, whose adapter is trained on; leave peft_config out, or merge "
            "the adapter (merge_and_unload) to put another one on."
        )
    args.critic = chosen_critic(args, goes_on or peft_config is not None)
    # The critic is made before an adapter comes on, and the reference after: of a full policy it
    # is a copy, of a policy with an adapter the same model with the adapter off.
    critic = make_critic(policy, args)
    if peft_config is not None:
        try:
            policy = get_peft_model(policy, peft_config)
        except ValueError as error:
            reason = one_sentence(error)
            raise UserError(f"the adapter does not fit the policy: {reason}.") from error
    reference = make_reference(policy)
    actor_critic = ActorCritic(policy, critic)
    if goes_on:
        assert actor_critic.adapters is not None
        for parameter in actor_critic.adapters.parameters(POLICY):
            parameter.requires_grad_(True)  # PEFT loads adapters frozen where it is not told
        actor_critic.adapters.copy(REFERENCE, POLICY, trainable=False)
    if args.critic == "adapter":
        add_value_adapter(actor_critic, args)
    use_fast_products(actor_critic)
    if args.disable_dropout:
        disable_dropout(actor_critic)
    return actor_critic, reference


def save_policy_weights(
    actor_critic: ActorCritic, folder: Path, weights: dict[str, Any] | None = None
) -> None:
    """Write the policy: a whole model, or its adapter alone.

    Args:
        actor_critic: Policy and critic.
        folder: Where to.
        weights: Weights of both by name, where the module has shards of them.
    """
    # Of several adapters the policy's; those of reference and reward lie where they came from.
    own: dict[str, Any] = {}
    if actor_critic.adapters is not None:
        own["selected_adapters"] = [POLICY]
    if weights is not None:
        before = "policy."
        own["state_dict"] = {
            name.removeprefix(before): t for name, t in weights.items() if name.startswith(before)
        }
    actor_critic.policy.save_pretrained(folder, **own)


def load_policy_weights(actor_critic: ActorCritic, folder: Path) -> None:
    """Read the policy of a checkpoint back; what is trained stays trainable."""
    policy, adapters = actor_critic.policy, actor_critic.adapters
    if adapters is not None:
        # Trainer's way would freeze every adapter but the active one.
        adapters.load_state(POLICY, load_file(folder / WEIGHTS))
    else:
        # from_pretrained knows shards and tied weights, which a bare state dict does not.
        saved = type(policy).from_pretrained(folder, dtype=policy.dtype)
        policy.load_state_dict(saved.state_dict())


def describe_roles(trainer: Any) -> dict[str, str]:
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
    return f"{_adapter(module.adapters, VALUE)}, {head}" if module.value_adapters else head


def _rewards(functions: Iterable[Any]) -> dict[str, str]:
    said = {}
    for function in functions:
        if isinstance(function, RewardModel):
            model = function.model
            if isinstance(model, RewardRole):
                head = _formats(model.score.parameters())
                said[model.name] = f"{_adapter(model.adapters, model.name)}, head in {head}"
            else:
                said[function.__name__] = f"model of its own in {_formats(model.parameters())}"
    return said


def _adapter(adapters: Adapters, name: str) -> str:
    return f"adapter in {_formats(adapters.parameters(name))}"


def _formats(tensors: Iterable[Tensor]) -> str:
    return " and ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
