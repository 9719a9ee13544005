"""Numbers that describe a rollout, under the names of TRL 1.12's PPO where it had one.

Shapes: B episodes, C completion tokens. Masks are 1 where a token counts.
"""

from torch import Tensor


def describe(
    scores_B: Tensor, kl_BC: Tensor, logps_BC: Tensor, mask_BC: Tensor, kl_coef: float
) -> dict[str, float]:
    """Means over the episodes of a rollout.

    Args:
        scores_B: Scores as the objective sees them.
        kl_BC: KL of each token, nats.
        logps_BC: Log-probabilities of the policy that sampled, nats.
        mask_BC: 1 where a token counts.
        kl_coef: Weight of the KL.

    Returns:
        KL, entropy (both nats per completion), scores, their sum with the KL penalty, and the
        length of completions in tokens.
    """
    kl = kl_BC.sum(1).mean().item()
    return {
        "objective/kl": kl,
        "objective/kl_coef": kl_coef,
        "objective/entropy": -(logps_BC * mask_BC).sum(1).mean().item(),
        "objective/non_score_reward": -kl_coef * kl,
        "objective/rlhf_reward": scores_B.mean().item() - kl_coef * kl,
        "objective/scores": scores_B.mean().item(),
        "objective/scores_std": scores_B.std(correction=0).item(),
        "objective/completion_length": mask_BC.sum(1).float().mean().item(),
    }


def explained_variance(values_BC: Tensor, returns_BC: Tensor, mask_BC: Tensor) -> float:
    """Share of the returns' variance that the values explain.

    Returns:
        1 for perfect values, 0 for values no better than the mean return, below 0 for worse ones.
    """
    kept = mask_BC.bool()
    residual = (returns_BC - values_BC)[kept].var(correction=0)
    return 1.0 - (residual / returns_BC[kept].var(correction=0).clamp(min=1e-8)).item()
