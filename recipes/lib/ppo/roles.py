"""From a model by name or by value to policy, critic and reference."""

from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.lib.backbone import ActorCritic, disable_dropout, keep_unpacked, make_reference
from recipes.lib.errors import UserError
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.critic import make_critic


def load(model: Any, processing_class: Any, quantization_config: Any) -> tuple[Any, Any]:
    """Load the policy and its tokenizer where they were given by name.

    Args:
        model: Causal language model, or its folder or Hub id.
        processing_class: Its tokenizer; None for the one that lies beside it.
        quantization_config: For a model given by name.

    Returns:
        Model and tokenizer.

    Raises:
        UserError: The model carries an adapter already.
    """
    if isinstance(model, PeftModel):
        raise UserError(
            "model is a PeftModel, whose reference would be the bare base; merge the adapter "
            "(merge_and_unload) and give peft_config for the new one."
        )
    name = model if isinstance(model, str) else model.config._name_or_path
    if isinstance(model, str):
        model = AutoModelForCausalLM.from_pretrained(
            model, quantization_config=quantization_config, dtype="auto"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"model={name} is an adapter; load its base, merge the adapter (merge_and_unload) and "
            "give peft_config for the new one."
        )
    if processing_class is None:
        processing_class = AutoTokenizer.from_pretrained(name)
    return model, processing_class


def make_roles(
    policy: Any, args: PPOConfig, peft_config: PeftConfig | None
) -> tuple[ActorCritic, Any]:
    """Make what is trained and what it is held to.

    Args:
        policy: The model that the run starts from.
        args: The configuration.
        peft_config: Adapter to train instead of the whole model.

    Returns:
        Policy and critic as one module, and the reference (None: the policy, its adapter off).
    """
    # The critic is made before an adapter comes on, and the reference after: of a full policy it
    # is a copy, of a policy with an adapter the same model with the adapter off.
    critic = make_critic(policy, args)
    if peft_config is not None:
        policy = get_peft_model(policy, peft_config)
    reference = make_reference(policy)
    actor_critic = ActorCritic(policy, critic)
    keep_unpacked(actor_critic)
    if args.disable_dropout:
        disable_dropout(actor_critic)
    return actor_critic, reference
