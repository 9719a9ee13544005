"""What a reward model loses on an answer, as functions of its scores; each row has a loss.

Shapes: B rows, N completions of a row (padded with rank 0), D completions that share a rank at
most, C cut points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

ABSENT = -1e30  # log-strength of a completion that is not there; finite, so that gradients are


def ranking_loss(
    scores_BN: Tensor,
    ranks_BN: Tensor,
    ties_D: Tensor | None = None,
    margins_B: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of a ranking, chosen from the best rank to the worst.

    -sum over ranks of log [f(C) / sum over S of f(S)]; C are the completions of that rank, S all
    sets of at most D of those left, f the geometric mean of strengths exp(score) times the weight
    of a tie. Without ties that is Plackett and Luce's model; of two Bradley and Terry's, Davidson's
    with ties.

    Args:
        scores_BN: Scores.
        ranks_BN: Ranks, 1 the best, equal for ties; 0 where there is no completion.
        ties_D: Logarithms of the weights of ties of 1 (which is 0), 2 ... D; None without ties.
        margins_B: What the best of two has to be ahead by, as in RewardTrainer; else 0.
        label_smoothing: Probability that an answer is the other way round.

    Returns:
        The losses, in nats, of shape (B,).

    Sources: Plackett, Applied Statistics 24, 1975; Davidson, JASA 65, 1970; Firth, Kosmidis and
        Turner, Davidson-Luce model for multi-item choice with ties, 2019, equation 2.
    """
    if label_smoothing:
        reversed_BN = (ranks_BN.amax(1, keepdim=True) + 1 - ranks_BN) * (ranks_BN > 0)
        other = None if margins_B is None else -margins_B
        right = ranking_loss(scores_BN, ranks_BN, ties_D, margins_B)
        wrong = ranking_loss(scores_BN, reversed_BN, ties_D, other)
        return (1 - label_smoothing) * right + label_smoothing * wrong
    if margins_B is not None:
        scores_BN = scores_BN - margins_B[:, None] * (ranks_BN == 1)
    losses_B = scores_BN.new_zeros(len(scores_BN))
    for rank in range(1, int(ranks_BN.max()) + 1):
        is_left, is_chosen = ranks_BN >= rank, ranks_BN == rank
        # Of one completion that is left there is nothing to choose.
        is_asked_B = is_chosen.any(1) & (is_left.sum(1) > 1)
        if ties_D is None:
            chosen_B = scores_BN.masked_fill(~is_chosen, ABSENT).amax(1)
            others_B = scores_BN.masked_fill(~is_left | is_chosen, ABSENT).logsumexp(1)
            loss_B = -logsigmoid(chosen_B - others_B)
        else:
            sizes_B = is_chosen.sum(1).clamp(min=1)
            said_B = (scores_BN * is_chosen).sum(1) / sizes_B + ties_D[sizes_B - 1]
            loss_B = _log_sum_of_sets(scores_BN.masked_fill(~is_left, ABSENT), ties_D) - said_B
        losses_B = losses_B + torch.where(is_asked_B, loss_B, 0.0)
    return losses_B


def _log_sum_of_sets(scores_BN: Tensor, ties_D: Tensor) -> Tensor:
    """Log of the sum of f over all sets of at most D: elementary symmetric polynomials."""
    found = []
    for size in range(1, len(ties_D) + 1):
        sums = [torch.zeros_like(scores_BN[:, 0]), torch.full_like(scores_BN[:, 0], ABSENT)]
        sums += sums[1:] * (size - 1)  # of sets of 0, 1 ... `size` completions
        for scores_B in (scores_BN / size).unbind(1):
            more = [torch.logaddexp(sums[n], sums[n - 1] + scores_B) for n in range(1, size + 1)]
            sums = [sums[0], *more]
        found.append(sums[size] + ties_D[size - 1])
    return torch.stack(found, 1).logsumexp(1)


def ordinal_loss(scores_B: Tensor, levels_B: Tensor, cuts_BC: Tensor) -> Tensor:
    """Negative log-likelihood of ratings under proportional odds; of two levels it is logistic.

    P(above level j) = sigmoid(score - cut_j).

    Args:
        scores_B: Scores, with what the annotator adds to them.
        levels_B: The places of the ratings among all there can be, from 0.
        cuts_BC: Rising cut points between the levels; infinity behind the last one.

    Returns:
        The losses, in nats, of shape (B,).

    Source: McCullagh, Journal of the Royal Statistical Society B 42, 1980.
    """
    edge = cuts_BC.new_full((len(cuts_BC), 1), torch.inf)
    low_B, high_B = (
        cuts.gather(1, levels_B[:, None]).squeeze(1)
        for cuts in (torch.cat([-edge, cuts_BC], 1), torch.cat([cuts_BC, edge], 1))
    )
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), without its cancellation
    inner_B = torch.log(-torch.expm1(low_B - high_B))
    return -(logsigmoid(scores_B - low_B) + logsigmoid(high_B - scores_B) + inner_B)


def regression_loss(scores_B: Tensor, ratings_B: Tensor) -> Tensor:
    """Half the squared error of scores, as predictions of standardized ratings."""
    return (scores_B - ratings_B) ** 2 / 2


def centring_loss(scores_BN: Tensor, ranks_BN: Tensor) -> Tensor:
    """Squared sum of a row's scores, which keeps comparisons around 0, as in TRL's RewardTrainer.

    Source: Eisenstein et al., Helping or Herding?, 2023, section 3.
    """
    return (scores_BN * (ranks_BN > 0)).sum(1) ** 2
