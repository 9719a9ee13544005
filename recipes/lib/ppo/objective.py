"""What PPO minimises: pure functions of log-probabilities and values.

Shapes: B episodes, C completion tokens, V vocabulary. Masks are 1 where a token counts. Every loss
is a sum over tokens divided by a given count, so any split of a batch gives the same gradient.
"""

import math
from typing import Any

import torch
from torch import Tensor

from recipes.lib.ppo.config import PPOConfig

MAX_LOG_RATIO = 20.0  # beyond it exp() is on its way to infinity, and the clip decides anyway


def policy_loss(
    logps_BC: Tensor,
    old_logps_BC: Tensor,
    advantages_BC: Tensor,
    mask_BC: Tensor,
    cliprange: float,
    num_tokens: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate objective.

    Args:
        logps_BC: Log-probabilities of the policy, nats.
        old_logps_BC: Those of the policy that sampled.
        advantages_BC: Advantages.
        mask_BC: 1 where a token counts.
        cliprange: Clip range of the ratio.
        num_tokens: Tokens of the whole optimizer step, over accumulation and processes.

    Returns:
        The loss, and sums over tokens of clip fraction, approximate KL and ratio.

    Source:
        Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7.
    """
    log_ratio_BC = (logps_BC - old_logps_BC).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) * mask_BC
    ratio_BC = log_ratio_BC.exp()
    clipped_BC = ratio_BC.clamp(1.0 - cliprange, 1.0 + cliprange)
    loss_BC = torch.max(-advantages_BC * ratio_BC, -advantages_BC * clipped_BC)
    with torch.no_grad():
        hit_BC = -advantages_BC * clipped_BC > -advantages_BC * ratio_BC
        sums = {
            "policy/clipfrac_avg": (hit_BC * mask_BC).sum(),
            "policy/approxkl_avg": 0.5 * (log_ratio_BC.square() * mask_BC).sum(),
            "val/ratio": (ratio_BC * mask_BC).sum(),
        }
    return (loss_BC * mask_BC).sum() / num_tokens, sums


def value_loss(
    values_BC: Tensor,
    old_values_BC: Tensor,
    returns_BC: Tensor,
    mask_BC: Tensor,
    cliprange_value: float | None,
    num_tokens: float,
    *,
    scale: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the squared error of the values, in units of the returns' spread.

    So the loss and its clip mean the same for rewards of any scale.

    Args:
        values_BC: Values of the critic.
        old_values_BC: Its values when the rollout was made.
        returns_BC: What it should predict.
        mask_BC: 1 where a token counts.
        cliprange_value: How far the values may move from those of the rollout, in units of the
            scale, before the loss stops falling; None for no limit.
        num_tokens: Tokens of the whole optimizer step, over accumulation and processes.
        scale: Standard deviation of the returns.

    Returns:
        The loss, and the sum over tokens of the clip fraction.

    Source:
        The clipping is that of lm-human-preferences; it is not in the PPO paper.
    """
    limit = math.inf if cliprange_value is None else cliprange_value * scale
    clipped_BC = old_values_BC + (values_BC - old_values_BC).clamp(-limit, limit)
    error_BC = ((values_BC - returns_BC) / scale).square()
    clipped_error_BC = ((clipped_BC - returns_BC) / scale).square()
    loss_BC = 0.5 * torch.max(error_BC, clipped_error_BC)
    with torch.no_grad():
        # By range too: inside it the two errors differ by rounding.
        is_outside_BC = (values_BC - old_values_BC).abs() > limit
        hit_BC = (clipped_error_BC > error_BC) & is_outside_BC
        sums = {"val/clipfrac_avg": (hit_BC * mask_BC).sum()}
    return (loss_BC * mask_BC).sum() / num_tokens, sums


def micro_batch_loss(
    args: PPOConfig,
    inputs: dict[str, Any],
    logps_BC: Tensor,
    entropy_BC: Tensor,
    values_BC: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """A micro-batch's share of the loss of an optimizer step.

    Args:
        args: The configuration.
        inputs: The micro-batch of a RolloutStream.
        logps_BC: Log-probabilities of the policy, nats.
        entropy_BC: Its entropies, nats.
        values_BC: Values of the critic.

    Returns:
        The share of the loss, and shares of the step's metrics (means over its tokens).
    """
    mask_BC, num_tokens = inputs["completion_mask"], inputs["num_tokens"]
    of_policy, policy_sums = policy_loss(
        logps_BC, inputs["old_logps"], inputs["advantages"], mask_BC, args.cliprange, num_tokens
    )
    of_value, value_sums = value_loss(
        values_BC,
        inputs["old_values"],
        inputs["returns"],
        mask_BC,
        args.cliprange_value,
        num_tokens,
        scale=inputs["returns_std"],
    )
    of_entropy = (entropy_BC * mask_BC).sum() / num_tokens
    shares = {name: (s / num_tokens).item() for name, s in (policy_sums | value_sums).items()}
    shares |= {
        "loss/policy_avg": of_policy.item(),
        "loss/value_avg": of_value.item(),
        "policy/entropy_avg": of_entropy.item(),
    }
    of_policy = of_policy - args.entropy_coef * of_entropy
    if inputs["rollout_number"] < args.critic_warmup_rollouts:
        of_policy = of_policy * 0.0
    return of_policy + args.vf_coef * of_value, shares
