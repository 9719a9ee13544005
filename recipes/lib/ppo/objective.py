"""What PPO minimises: pure functions of log-probabilities and values.

In the first mini-batch of a rollout policy and sampler agree: the ratio is 1, and this is checked.

Shapes: B episodes, C completion tokens, V vocabulary. Masks are 1 where a token counts. Every loss
is a sum over tokens divided by a given count, so any split of a batch gives the same gradient.
"""

import math
from typing import Any

import torch
from torch import Tensor

from recipes.lib.models.forward import base_model
from recipes.lib.ppo.config import PPOConfig

# Log ratio (nats) that rounding explains: of any token in fp32, of the mean token in 16 bits, where
# one token among many thousands can be far off.
IN_FP32 = 1e-3
MEAN_IN_16_BITS = {torch.bfloat16: 0.1, torch.float16: 0.02}


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
    args: PPOConfig, inputs: dict[str, Any], logps_BC: Tensor, entropy_BC: Tensor, values_BC: Tensor
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
    mask_BC, num_tokens = inputs["action_mask"], inputs["num_tokens"]
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


def check_first_ratio(logps_BC: Tensor, inputs: dict[str, Any], dtype: torch.dtype) -> None:
    """Compare a mini-batch before the first update with what was said when it was sampled.

    Args:
        logps_BC: Log-probabilities of the forward pass of training, nats.
        inputs: The micro-batch, with `old_logps` and `action_mask`.
        dtype: Number format of the forward pass.

    Raises:
        RuntimeError: They differ by more than rounding explains.
    """
    mask_BC = inputs["action_mask"]
    difference_BC = ((logps_BC.detach() - inputs["old_logps"]) * mask_BC).abs()
    if dtype in MEAN_IN_16_BITS:
        off, allowed = (difference_BC.sum() / mask_BC.sum()).item(), MEAN_IN_16_BITS[dtype]
    else:
        off, allowed = difference_BC.max().item(), IN_FP32
    if off > allowed:  # what is not finite shows in the gradients, and the step is skipped
        raise RuntimeError(
            f"The first mini-batch of rollout {inputs['rollout_number']} has a log ratio of "
            f"{off:.3g} nats where no update was made; the model scores a sequence "
            "differently in another batch, or its weights moved between sampling and training."
        )


def forward_dtype(args: PPOConfig, policy: Any) -> torch.dtype:
    """How coarse the policy's forward pass in training is, as a number format.

    Args:
        args: The configuration.
        policy: The policy.

    Returns:
        The format.
    """
    if args.bf16 or args.fp16:
        return torch.bfloat16 if args.bf16 else torch.float16
    # int8 rounds activations by what stands beside them, as coarsely as bf16.
    is_int8 = getattr(base_model(policy), "is_loaded_in_8bit", False)
    return torch.bfloat16 if is_int8 else next(policy.parameters()).dtype
