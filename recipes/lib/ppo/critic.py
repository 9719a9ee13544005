"""Where a critic of its own comes from."""

from typing import Any

from transformers import AutoModelForSequenceClassification

from recipes.lib.errors import UserError
from recipes.lib.ppo.config import PPOConfig


def make_critic(policy: Any, args: PPOConfig) -> Any:
    """Make the critic that the configuration asks for.

    Args:
        policy: The policy before an adapter came on it.
        args: The configuration.

    Returns:
        None for a head on the policy's trunk; else a sequence classifier with one output, from a
        reward model or from the policy's trunk with a head of zeros, so that the first values are
        0 and not noise.

    Raises:
        UserError: The policy is quantized and no critic model is named, or the vocabularies differ.
    """
    if args.critic == "head":
        return None
    if args.critic_model_name_or_path is not None:
        from recipes.lib.models import load_reward_model

        critic, _ = load_reward_model(args.critic_model_name_or_path)
        theirs, ours = critic.config.get_text_config(), policy.config.get_text_config()
        if theirs.vocab_size != ours.vocab_size:
            raise UserError(
                f"critic_model_name_or_path={args.critic_model_name_or_path} has a vocabulary of "
                f"{theirs.vocab_size} tokens, the policy {ours.vocab_size}; the critic reads the "
                "policy's tokens, so use a model with the same tokenizer."
            )
        return critic.requires_grad_(True)
    if getattr(policy, "is_quantized", False):
        raise UserError(
            "critic=model cannot copy a quantized policy; use critic=head, or name a reward model "
            "as critic_model_name_or_path."
        )
    return _from_trunk(policy)


def _from_trunk(policy: Any) -> Any:
    one_label = {"id2label": {0: "value"}, "label2id": {"value": 0}}
    config = type(policy.config)(**policy.config.to_dict() | one_label)
    critic = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    trunk = getattr(critic, critic.base_model_prefix)
    trunk.load_state_dict(getattr(policy, policy.base_model_prefix).state_dict())
    critic.score.weight.data.zero_()
    return critic
