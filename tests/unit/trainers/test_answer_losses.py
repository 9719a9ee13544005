"""Losses of answers against code of their own: sets by enumeration, in Python's floats."""

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch.nn.functional import logsigmoid

from recipes.lib.trainers.answer_losses import (
    centring_loss,
    ordinal_loss,
    ranking_loss,
    regression_loss,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def enumerated(
    scores: Sequence[float], ranks: Sequence[int], ties: Sequence[float]
) -> tuple[float, list[float], list[float]]:
    """-log P of a ranking, and its gradients in scores and ties, from all sets there are."""
    loss, slopes, of_ties = 0.0, [0.0] * len(scores), [0.0] * len(ties)
    left = {place for place, rank in enumerate(ranks) if rank}
    for rank in sorted({ranks[place] for place in left}):
        chosen = {place for place in left if ranks[place] == rank}
        if len(left) > 1:
            worth = {
                some: math.exp(sum(scores[i] for i in some) / size + ties[size - 1])
                for size in range(1, len(ties) + 1)
                for some in itertools.combinations(sorted(left), size)
            }
            total = sum(worth.values())
            loss -= math.log(worth[tuple(sorted(chosen))] / total)
            for some, value in worth.items():
                gap = value / total - (set(some) == chosen)
                of_ties[len(some) - 1] += gap
                for i in some:
                    slopes[i] += gap / len(some)
        left -= chosen
    return loss, slopes, of_ties


CASES = [
    ([0.3, -1.2], [1, 2]),
    ([0.3, -1.2], [2, 1]),
    ([0.5, 2.0, -0.7, 0.1], [3, 1, 2, 4]),
    ([0.5, 2.0, -0.7, 0.1, 3.0], [5, 4, 3, 2, 1]),
]
TIED = [
    ([0.3, -1.2], [1, 1]),
    ([0.3, -1.2], [2, 1]),
    ([0.5, 2.0, -0.7, 0.1], [1, 2, 2, 3]),
    ([0.5, 2.0, -0.7, 0.1], [1, 1, 1, 2]),
    ([0.5, 2.0, -0.7, 0.1], [1, 1, 2, 2]),
    ([5.0, -3.0, 0.0], [1, 1, 1]),
]


@pytest.mark.parametrize("tied", [False, True])
def test_rankings_are_what_enumeration_says_row_by_row_and_as_one_batch(tied: bool) -> None:
    cases = CASES + TIED if tied else CASES
    ties = [0.0, -0.4, 0.9] if tied else [0.0]
    width = max(len(ranks) for _, ranks in cases)
    padded = [[*row, *[7.0] * (width - len(row))] for row, _ in cases]
    ranks = torch.tensor([[*row, *[0] * (width - len(row))] for _, row in cases])
    scores = torch.tensor(padded, dtype=torch.double, requires_grad=True)
    weights = torch.tensor(ties, dtype=torch.double, requires_grad=True)
    losses = ranking_loss(scores, ranks, weights if tied else None)
    losses.sum().backward()
    said = [enumerated(row, order, ties) for row, order in cases]
    assert losses.tolist() == pytest.approx([loss for loss, _, _ in said], abs=1e-9)
    assert scores.grad is not None
    for row, (_, slopes, _) in zip(scores.grad.tolist(), said, strict=True):
        assert row == pytest.approx([*slopes, *[0.0] * (width - len(slopes))], abs=1e-9)
    if tied:
        assert weights.grad is not None
        sums = [sum(of_ties[size] for _, _, of_ties in said) for size in range(3)]
        assert weights.grad.tolist() == pytest.approx(sums, abs=1e-9)


def test_in_32_bits_rankings_are_exact_to_a_millionth() -> None:
    draw = random.Random(3)
    for _ in range(50):
        row = [draw.gauss(0, 2) for _ in range(6)]
        order = [draw.randint(1, 4) for _ in row]
        order = [sorted({*order}).index(rank) + 1 for rank in order]
        ties = [0.0, *(draw.gauss(0, 1) for _ in range(5))]
        loss, slopes, _ = enumerated(row, order, ties)
        scores = torch.tensor([row], requires_grad=True)
        found = ranking_loss(scores, torch.tensor([order]), torch.tensor(ties))
        found.sum().backward()
        assert found.item() == pytest.approx(loss, rel=1e-6, abs=2e-6)
        assert scores.grad is not None
        assert scores.grad[0].tolist() == pytest.approx(slopes, abs=1e-6)


def test_worked_by_hand() -> None:
    # Strengths 3, 2, 1: the first of three is 3/6, then the second of two 2/3; in all 1/3.
    strengths = torch.tensor([[3.0, 2.0, 1.0]]).log()
    assert ranking_loss(strengths, torch.tensor([[1, 2, 3]])).item() == pytest.approx(math.log(3))
    # Equal pairs: each of three outcomes where the weight of a tie is 1.
    equal = torch.zeros(2, 2)
    weights = torch.zeros(2)
    told = ranking_loss(equal, torch.tensor([[1, 2], [1, 1]]), weights)
    assert told.tolist() == pytest.approx([math.log(3)] * 2)
    # Strengths 4 and 1, weight 2: 4, 1 and 2 * sqrt(4 * 1) of 9.
    pair, weight = torch.tensor([[4.0, 1.0]]).log(), torch.tensor([0.0, math.log(2)])
    for order, share in (([1, 2], 4 / 9), ([2, 1], 1 / 9), ([1, 1], 4 / 9)):
        found = ranking_loss(pair, torch.tensor([order]), weight)
        assert found.item() == pytest.approx(-math.log(share))
    # Levels below, between and above cut points at -log 3 and log 3 have 1/4, 1/2, 1/4 at 0.
    cuts = torch.tensor([[-math.log(3), math.log(3)]] * 3)
    shares = ordinal_loss(torch.zeros(3), torch.arange(3), cuts).neg().exp()
    assert shares.tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert regression_loss(torch.tensor([1.0]), torch.tensor([-1.0])).item() == 2.0
    assert centring_loss(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1, 2, 0]])).item() == 9.0


def test_a_ranking_of_two_is_bradley_and_terry_to_the_bit() -> None:
    scores = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * 5
    one, two = scores.clone().requires_grad_(True), scores.clone().requires_grad_(True)
    ours = ranking_loss(one, torch.tensor([[1, 2]]).expand(1000, 2), None, torch.zeros(1000))
    theirs = -logsigmoid(two[:, 0] - two[:, 1])
    assert torch.equal(ours, theirs)
    ours.mean().backward()
    theirs.mean().backward()
    assert one.grad is not None
    assert two.grad is not None
    assert torch.equal(one.grad, two.grad)


def test_margins_and_smoothing_of_pairs_are_their_formulas() -> None:
    scores = torch.tensor([[1.5, 0.25], [-1.0, 2.0]], dtype=torch.double)
    ranks, margins = torch.tensor([[1, 2], [2, 1]]), torch.tensor([0.5, 0.0], dtype=torch.double)
    right = [sigmoid(1.5 - 0.25 - 0.5), sigmoid(2.0 + 1.0)]
    found = ranking_loss(scores, ranks, None, margins, 0.1)
    expected = [-0.9 * math.log(p) - 0.1 * math.log(1 - p) for p in right]
    assert found.tolist() == pytest.approx(expected)
    plain = ranking_loss(scores, ranks, None, margins)
    assert plain.tolist() == pytest.approx([-math.log(p) for p in right])
    # With ties a margin is taken off the strength of the better one.
    better, worse = math.exp(1.0), math.exp(0.25)
    share = better / (better + worse + math.sqrt(better * worse))
    tied = ranking_loss(scores[:1], ranks[:1], torch.zeros(2, dtype=torch.double), margins[:1])
    assert tied.item() == pytest.approx(-math.log(share))


def test_ratings_are_what_differences_of_logistic_curves_say() -> None:
    draw, infinity = random.Random(1), math.inf
    rows = []
    for _ in range(40):
        drawn = sorted(draw.gauss(0, 2) for _ in range(4))
        most = draw.choice((1, 4))  # of a scale with fewer levels the other cut points are absent
        rows.append(
            (draw.gauss(0, 3), draw.randint(0, most), [*drawn[:most], *[infinity] * (4 - most)])
        )
    scores = torch.tensor([row[0] for row in rows], dtype=torch.double, requires_grad=True)
    cuts = torch.tensor([row[2] for row in rows], dtype=torch.double, requires_grad=True)
    losses = ordinal_loss(scores, torch.tensor([row[1] for row in rows]), cuts)
    losses.sum().backward()
    assert scores.grad is not None
    assert cuts.grad is not None
    for row, (score, level, edges) in enumerate(rows):
        low, high = [-infinity, *edges, infinity][level : level + 2]
        above = sigmoid(score - low) if low > -infinity else 1.0
        beyond = sigmoid(score - high) if high < infinity else 0.0
        share = above - beyond
        slope_low, slope_high = above * (1 - above) / share, beyond * (1 - beyond) / share
        assert losses[row].item() == pytest.approx(-math.log(share), rel=1e-9)
        assert scores.grad[row].item() == pytest.approx(slope_high - slope_low, abs=1e-9)
        expected = [0.0] * 6
        expected[level], expected[level + 1] = slope_low, -slope_high
        assert cuts.grad[row].tolist() == pytest.approx(expected[1:5], abs=1e-9)


def test_two_levels_are_logistic_regression_and_far_scores_stay_finite() -> None:
    scores = torch.tensor([0.7, 0.7, 80.0, -80.0], requires_grad=True)
    cuts = torch.tensor([[0.2, math.inf]]).expand(4, 2)
    losses = ordinal_loss(scores, torch.tensor([1, 0, 0, 1]), cuts)
    losses.sum().backward()
    expected = [-math.log(sigmoid(0.5)), -math.log(1 - sigmoid(0.5)), 79.8, 80.2]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
    slopes = [sigmoid(0.5) - 1, sigmoid(0.5), 1.0, -1.0]
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx(slopes, abs=1e-6)
