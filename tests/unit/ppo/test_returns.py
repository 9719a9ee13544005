"""Scores to advantages, against hand-worked values and a quadratic-time reference."""

import random

import pytest
import torch

from recipes.lib.ppo.kl_controller import KLController
from recipes.lib.ppo.returns import RunningMoments, advantages_and_returns, token_rewards, whiten
from tests.helpers.tiny import last


def advantage_by_definition(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> list[float]:
    """Sum over the future of (gamma lambda)^k delta_k, in O(T^2) and plain Python."""
    length = len(rewards)
    deltas = [
        rewards[t] + gamma * (values[t + 1] if t + 1 < length else 0.0) - values[t]
        for t in range(length)
    ]
    return [
        sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)
    ]


def test_item_27_advantages_equal_the_definition_on_random_ragged_rows() -> None:
    generator = random.Random(0)
    for _ in range(50):
        gamma, lam = generator.random(), generator.random()
        lengths = [generator.randint(1, 7) for _ in range(4)]
        width = max(lengths)
        rewards, values, mask = torch.zeros(4, width), torch.zeros(4, width), torch.zeros(4, width)
        expected = torch.zeros(4, width)
        for row, length in enumerate(lengths):
            r = [generator.gauss(0, 1) for _ in range(length)]
            v = [generator.gauss(0, 1) for _ in range(length)]
            rewards[row, :length], values[row, :length] = torch.tensor(r), torch.tensor(v)
            mask[row, :length] = 1
            expected[row, :length] = torch.tensor(advantage_by_definition(r, v, gamma, lam))
        advantages, returns = advantages_and_returns(rewards, values, mask, gamma, lam)
        # fp32 sums of at most seven terms of size one
        assert torch.allclose(advantages, expected, atol=1e-5)
        assert torch.allclose(returns, (expected + values) * mask, atol=1e-5)


def test_item_26_what_lies_behind_the_end_has_no_influence() -> None:
    rewards, values = torch.randn(2, 5), torch.randn(2, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    clean = advantages_and_returns(rewards, values, mask, 1.0, 0.95)
    spoiled_rewards = torch.where(mask.bool(), rewards, 1e6)
    spoiled_values = torch.where(mask.bool(), values, float("nan"))
    spoiled = advantages_and_returns(spoiled_rewards, spoiled_values, mask, 1.0, 0.95)
    assert torch.equal(clean[0], spoiled[0])
    assert torch.equal(clean[1], spoiled[1])


def test_item_18_without_kl_every_token_gets_the_score_minus_its_value() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    logps = torch.full((2, 4), -1.0)
    rewards, kl = token_rewards(torch.tensor([2.0, -3.0]), last(mask), logps, logps, mask, 0.1)
    assert torch.equal(kl, torch.zeros(2, 4))
    # the score stands on the last token of each completion and nowhere else
    assert torch.equal(rewards, torch.tensor([[0.0, 0.0, 2.0, 0.0], [-3.0, 0.0, 0.0, 0.0]]))
    values = torch.tensor([[0.5, 0.25, 0.0, 9.0], [1.0, 9.0, 9.0, 9.0]])
    advantages, _ = advantages_and_returns(rewards, values, mask, 1.0, 1.0)
    expected = torch.tensor([[1.5, 1.75, 2.0, 0.0], [-4.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(advantages, expected)


def test_item_01_the_kl_enters_once_with_its_coefficient() -> None:
    mask = torch.tensor([[1, 1, 0]])
    logps, ref_logps = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, -1.0]])
    rewards, kl = token_rewards(torch.tensor([0.0]), last(mask), logps, ref_logps, mask, 0.2)
    # -1 + 1.5 = 0.5 and -2 + 1 = -1 nats; times -0.2
    assert torch.allclose(kl, torch.tensor([[0.5, -1.0, 0.0]]))
    assert torch.allclose(rewards, torch.tensor([[-0.1, 0.2, 0.0]]))


def test_item_30_whitening_sees_only_the_mask_and_can_keep_the_mean() -> None:
    values = torch.tensor([[1.0, 3.0, 777.0], [5.0, -777.0, 777.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    # 1, 3, 5: mean 3, variance 8/3
    expected = torch.tensor([[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]) / (8 / 3) ** 0.5
    assert torch.allclose(whiten(values, mask), expected, atol=1e-6)
    kept = whiten(values, mask, shift_mean=False)
    assert torch.allclose(kept, (expected + 3.0) * mask, atol=1e-6)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (12.0, 1.0 + 0.2 * 64 / 10_000),  # error 1, clipped to 0.2
        (0.0, 1.0 - 0.2 * 64 / 10_000),
        (6.6, 1.0 + 0.1 * 64 / 10_000),  # error 0.1, not clipped
    ],
)
def test_item_04_the_adaptive_coefficient_follows_the_proportional_rule(
    kl: float, factor: float
) -> None:
    controller = KLController(0.15, target_kl=6.0, horizon=10_000)
    controller.update(kl, num_episodes=64)
    assert controller.value == pytest.approx(0.15 * factor, rel=1e-12)


def test_item_04_without_a_target_the_coefficient_stays() -> None:
    controller = KLController(0.15, target_kl=None, horizon=10_000)
    controller.update(1e9, num_episodes=64)
    assert controller.value == 0.15


def test_item_24_running_moments_equal_those_of_all_scores_at_once() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(5) + 3.0, torch.randn(1), torch.randn(9) * 4.0]
    moments = RunningMoments()
    for batch in batches:
        moments.update(batch)
    together = torch.cat(batches).double()
    assert moments.mean == pytest.approx(together.mean().item(), rel=1e-12)
    assert moments.std == pytest.approx(together.std(correction=0).item(), rel=1e-12)


def test_item_24_constant_scores_have_a_standard_deviation_of_one() -> None:
    moments = RunningMoments()
    moments.update(torch.full((4,), 2.5))
    assert moments.std == 1.0
