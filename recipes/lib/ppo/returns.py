"""From scores to advantages: pure functions on a whole rollout.

Shapes: B rows, C completion tokens, N turns, E episodes, L tokens of an episode that count. Masks
are 1 where a token counts.
"""

import torch
from torch import Tensor


def token_rewards(
    scores_N: Tensor,
    places: tuple[Tensor, Tensor],
    logps_BC: Tensor,
    ref_logps_BC: Tensor,
    mask_BC: Tensor,
    kl_coef: float,
) -> tuple[Tensor, Tensor]:
    """Reward of each token: the KL penalty everywhere, each score on one token.

    Args:
        scores_N: Score of each turn.
        places: Row and column of the token that each stands on.
        logps_BC: Log-probabilities of the policy that sampled, nats.
        ref_logps_BC: Log-probabilities of the reference, nats.
        mask_BC: 1 where a token counts.
        kl_coef: Weight of the KL.

    Returns:
        The token rewards and the KL of each token (k1 estimator, nats).

    Source:
        Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", equation 2.
    """
    kl_BC = (logps_BC - ref_logps_BC) * mask_BC
    rewards_BC = -kl_coef * kl_BC
    rewards_BC[places] += scores_N
    return rewards_BC, kl_BC


def advantages_and_returns(
    rewards_BC: Tensor,
    values_BC: Tensor,
    completion_mask_BC: Tensor,
    gamma: float | Tensor,
    lam: float,
    next_values_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; the end of a completion is terminal.

    Args:
        rewards_BC: Reward of each token.
        values_BC: Value of the state before each token.
        completion_mask_BC: 1 where a token counts; what lies behind has no influence.
        gamma: Discount behind each token, or one for all.
        lam: Lambda of the estimator.
        next_values_B: Value of what follows behind the last token, where the end is none.

    Returns:
        Advantages and returns, both 0 behind the end.

    Source:
        Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
        Estimation", equation 16.
    """
    advantages_BC = torch.zeros_like(rewards_BC)
    gamma_BC = torch.as_tensor(gamma, dtype=torch.float64).expand(rewards_BC.shape)
    gamma_BC, decay_BC = gamma_BC.to(rewards_BC.dtype), (gamma_BC * lam).to(rewards_BC.dtype)
    advantage_B = torch.zeros_like(rewards_BC[:, 0])
    next_value_B = advantage_B if next_values_B is None else next_values_B
    for t in reversed(range(rewards_BC.shape[1])):
        counts_B = completion_mask_BC[:, t].bool()
        delta_B = rewards_BC[:, t] + gamma_BC[:, t] * next_value_B - values_BC[:, t]
        advantage_B = torch.where(counts_B, delta_B + decay_BC[:, t] * advantage_B, advantage_B)
        advantages_BC[:, t] = torch.where(counts_B, advantage_B, 0.0)
        next_value_B = torch.where(counts_B, values_BC[:, t], next_value_B)
    return advantages_BC, torch.where(completion_mask_BC.bool(), advantages_BC + values_BC, 0.0)


def by_episode(of_tokens_BC: Tensor, mask_BC: Tensor, lengths_E: list[int]) -> Tensor:
    """The tokens that count, those of an episode in one row with nothing between them.

    Args:
        of_tokens_BC: Numbers of the tokens.
        mask_BC: 1 where a token counts.
        lengths_E: How many of them each episode has; its rows follow each other.

    Returns:
        (E, L), 0 behind the end.
    """
    of_episodes = of_tokens_BC[mask_BC.bool()].split(lengths_E)
    return torch.nn.utils.rnn.pad_sequence(list(of_episodes), batch_first=True)


def returns_to_go(scores_B: Tensor, goes_on: list[bool], gamma: float) -> Tensor:
    """Discounted sum of a row's score and those of the rows of the same episode behind it.

    Args:
        scores_B: Score of each row.
        goes_on: Whether the next row goes on with the same episode.
        gamma: Discount per row.

    Returns:
        (B,).
    """
    sums, later = [0.0] * len(scores_B), 0.0
    for row in reversed(range(len(scores_B))):
        later = scores_B[row].item() + (gamma * later if goes_on[row] else 0.0)
        sums[row] = later
    return torch.tensor(sums)


def whiten(values_BC: Tensor, mask_BC: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over the tokens of the mask.

    Args:
        values_BC: What to scale.
        mask_BC: 1 where a token counts.
        shift_mean: Whether the mean becomes 0; else it stays, and with it the sign of a reward.

    Returns:
        The scaled values, 0 outside the mask.

    Source:
        lm-human-preferences; the variance is the biased one (divided by n), so one token is fine.
    """
    count = mask_BC.sum()
    mean = (values_BC * mask_BC).sum() / count
    variance = ((values_BC - mean).square() * mask_BC).sum() / count
    whitened_BC = (values_BC - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened_BC = whitened_BC + mean
    return whitened_BC * mask_BC


class RunningMoments:
    """Mean and variance of all scores so far, in one pass over batches.

    Source:
        Chan, Golub, LeVeque 1979, updating formulae for a pairwise algorithm.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.sum_of_squares = 0.0

    def update(self, scores_B: Tensor) -> None:
        """Add a batch of scores."""
        scores_B = scores_B.double()
        count, mean = len(scores_B), scores_B.mean().item()
        delta, total = mean - self.mean, self.count + count
        self.sum_of_squares += (scores_B - mean).square().sum().item()
        self.sum_of_squares += delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation; 1 until two different scores were seen."""
        return (self.sum_of_squares / self.count) ** 0.5 if self.sum_of_squares > 0 else 1.0
