"""Episodes of several turns: which tokens count, discounts, limits, and the gradient."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.lib.environments.worlds import world_seed
from recipes.lib.generation.sampling import episode_uniforms
from recipes.lib.ppo.collector import Collector
from recipes.lib.ppo.objective import micro_batch_loss
from recipes.lib.ppo.returns import advantages_and_returns
from recipes.lib.ppo.rollouts import Episode, Turn, action_mask, turn_places
from tests.helpers import tiny
from tests.recipes.test_environments import Walk, make

EOS = 1


def episode(
    lengths: list[tuple[int, int]], rewards: list[float], seed: int, **more: Any
) -> Episode:
    """Turns of so many tokens, each with so many of the environment behind it."""
    drawn = torch.Generator().manual_seed(seed)
    turns: list[Turn] = []
    ids: list[int] = []
    for (own, heard), reward in zip(lengths, rewards, strict=True):
        turns.append(Turn(len(ids), len(ids) + own, "a", reward, "b"))
        ids += [*torch.randint(4, 9, (own - 1,), generator=drawn).tolist(), EOS, *[9] * heard]
    made = Episode(0, [4, 5], ids, score=sum(rewards), turns=turns, asked="a b", **more)
    made.logps, made.ref_logps, made.values = torch.randn(3, len(ids), generator=drawn)
    return made


def advantages_by_definition(
    rewards: list[float], values: list[float], gammas: list[float], lam: float, after: float
) -> list[float]:
    """The sum of Schulman et al., equation 16, term by term."""
    nexts = [*values[1:], after]
    deltas = [r + g * n - v for r, g, n, v in zip(rewards, gammas, nexts, values, strict=True)]
    found = []
    for first in range(len(deltas)):
        total, weight = 0.0, 1.0
        for place in range(first, len(deltas)):
            total += weight * deltas[place]
            weight *= gammas[place] * lam
        found.append(total)
    return found


def numbers(
    rows: list[Episode], kl_coef: float, gamma: float, lam: float, per: str
) -> tuple[list[float], list[float]]:
    """Advantages and returns of one episode's own tokens, over all its rows, in float64."""
    rewards, values, gammas = [], [], []
    for row in rows:
        assert row.logps is not None
        assert row.ref_logps is not None
        assert row.values is not None
        kl = (row.logps - row.ref_logps).double().tolist()
        for turn in row.turns:
            for place in range(turn.start, turn.end):
                is_last = place == turn.end - 1
                rewards.append(-kl_coef * kl[place] + (turn.reward if is_last else 0.0))
                values.append(row.values[place].item())
                gammas.append(gamma if is_last or per == "token" else 1.0)
    found = advantages_by_definition(rewards, values, gammas, lam, rows[-1].next_value)
    return found, [a + v for a, v in zip(found, values, strict=True)]


def collector(folder: Path, **more: Any) -> Collector:
    settings = {"gamma": 0.9, "lam": 0.8, "kl_coef": 0.3, "learning_rate": 1e-3}
    made = make(folder, Walk, **(settings | more)).collector
    made.has_units = True
    return made


def own(of_tokens: Tensor, rollout: Any, row: int) -> list[float]:
    return of_tokens[row][rollout.action_mask[row].bool()].double().tolist()


@pytest.mark.parametrize("per", ["turn", "token"])
def test_item_52_advantages_pass_over_what_the_environment_said(tmp_path: Path, per: str) -> None:
    some = collector(tmp_path, gamma_per=per)
    episodes = [
        episode([(3, 2), (1, 4), (2, 0)], [0.5, -1.0, 2.0], 1),
        episode([(2, 3), (4, 0)], [0.0, 1.0], 2, following_ids=[4, 5], next_value=1.7),
        episode([(1, 0)], [-0.25], 3),
    ]
    rollout = some._finish(episodes, 0)
    assert rollout.action_mask[0].tolist() == [1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1]
    assert rollout.completion_mask[1].tolist() == [1] * 9 + [0] * 3
    expected = [numbers([e], 0.3, 0.9, 0.8, per) for e in episodes]
    flat = torch.tensor([a for found, _ in expected for a in found]).double()
    whitened = (flat - flat.mean()) / flat.std(correction=0)
    got = torch.cat([torch.tensor(own(rollout.advantages, rollout, row)) for row in range(3)])
    assert torch.allclose(got.double(), whitened, atol=1e-5)
    for row, (_, returns) in enumerate(expected):
        assert own(rollout.returns, rollout, row) == pytest.approx(returns, abs=1e-5)
    outside = ~rollout.action_mask.bool()
    assert not rollout.advantages[outside].any()
    assert not rollout.returns[outside].any()


def test_item_52_advantages_go_on_over_rows_of_one_episode(tmp_path: Path) -> None:
    some = collector(tmp_path, context="last")
    first = [
        episode([(2, 0)], [1.0], 1, goes_on=True),
        episode([(1, 0)], [1.0], 2, goes_on=True),
        episode([(3, 0)], [-2.0], 3),  # the end
    ]
    second = [
        episode([(1, 0)], [0.5], 4, goes_on=True),
        episode([(2, 0)], [0.5], 5, following_ids=[4], next_value=-0.6),  # the rollout ends here
    ]
    rollout = some._finish([*first, *second], 0)
    expected = [r for rows in (first, second) for r in numbers(rows, 0.3, 0.9, 0.8, "turn")[1]]
    got = [value for row in range(5) for value in own(rollout.returns, rollout, row)]
    assert got == pytest.approx(expected, abs=1e-5)


def test_item_52_by_hand() -> None:
    """Two turns of two tokens, gamma 1/2 a turn, lambda 1, a limit behind them worth 4."""
    rewards, gammas = torch.tensor([[0.0, 1.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.5, 1.0, 0.5]])
    ones = torch.ones(1, 4)
    advantages, returns = advantages_and_returns(
        rewards, ones, ones, gammas, 1.0, torch.tensor([4.0])
    )
    # From behind: 2 + 4/2 = 4, the same before it, then 1 + 4/2 = 3 and again the same.
    assert returns.tolist() == [[3.0, 3.0, 4.0, 4.0]]
    assert advantages.tolist() == [[2.0, 2.0, 3.0, 3.0]]
    assert advantages[0].tolist() == advantages_by_definition(
        rewards[0].tolist(), [1.0] * 4, gammas[0].tolist(), 1.0, 4.0
    )


@pytest.mark.parametrize("per", ["turn", "token"])
def test_item_52_the_gradient_is_that_of_float64_code(tmp_path: Path, per: str) -> None:
    some = collector(tmp_path, gamma_per=per, cliprange=0.1, vf_coef=0.7, entropy_coef=0.2)
    episodes = [
        episode([(3, 2), (2, 0)], [0.5, -1.0], 1),
        episode([(2, 3), (1, 1), (1, 0)], [0.0, 1.0, 1.0], 2, following_ids=[4], next_value=0.4),
    ]
    rollout = some._finish(episodes, 0)
    drawn = torch.Generator().manual_seed(9)
    shape = rollout.completion_ids.shape
    logps, entropy, values = torch.randn(3, *shape, generator=drawn).unbind()
    logps = (rollout.old_logps + 0.2 * logps).requires_grad_()
    entropy, values = entropy.requires_grad_(), values.requires_grad_()
    count = float(rollout.action_mask.sum())
    inputs = rollout.rows(torch.arange(2)) | {"num_tokens": count, "rollout_number": 0}
    inputs |= {"returns_std": 1.3}
    loss, _ = micro_batch_loss(some.trainer.args, inputs, logps, entropy, values)
    gradients = torch.autograd.grad(loss, (logps, entropy, values))

    flat = [a for e in episodes for a in numbers([e], 0.3, 0.9, 0.8, per)[0]]
    mean = sum(flat) / len(flat)
    std = (sum((a - mean) ** 2 for a in flat) / len(flat)) ** 0.5
    total, wide = torch.zeros(()).double(), [t.double() for t in (logps, entropy, values)]
    for row, e in enumerate(episodes):
        advantages, returns = numbers([e], 0.3, 0.9, 0.8, per)
        places = [p for t in e.turns for p in range(t.start, t.end)]
        for place, advantage, target in zip(places, advantages, returns, strict=True):
            ratio = (wide[0][row, place] - rollout.old_logps[row, place].double()).exp()
            whitened = (advantage - mean) / std
            better = torch.min(ratio * whitened, ratio.clamp(0.9, 1.1) * whitened)
            error = ((wide[2][row, place] - target) / 1.3) ** 2
            total = total - better - 0.2 * wide[1][row, place] + 0.7 * 0.5 * error
    expected = torch.autograd.grad(total / count, (logps, entropy, values))
    for got, want in zip(gradients, expected, strict=True):
        assert torch.allclose(got, want, atol=1e-6)
        assert not got[~rollout.action_mask.bool()].any()


def test_item_52_what_follows_is_valued_by_the_critic(tmp_path: Path) -> None:
    trainer = make(tmp_path, Walk, max_turns=1, critic="head", total_episodes=8)
    tiny.shake(trainer.actor_critic.critic_module)
    episodes = [row for rows in trainer.collector.player.whole(
        trainer.collector.prompts, [0, 1, 2, 3], range(4), 3) for row in rows]  # fmt: skip
    trainer.collector.score(trainer.collector.prompts, episodes)
    cut = [e for e in episodes if e.following_ids]
    assert cut
    head = trainer.actor_critic.critic_module
    for e in cut:
        assert e.following_ids[: len(e.prompt_ids)] == e.prompt_ids
        ids = torch.tensor([e.following_ids])
        hidden = trainer.actor_critic.policy.model(input_ids=ids).last_hidden_state[0, -1]
        value = head(hidden.float()).item()
        assert e.next_value == pytest.approx(value, abs=1e-5)
        assert e.next_value != 0.0
    assert all(e.next_value == 0.0 for e in episodes if not e.following_ids)


def test_item_52_places_of_turns() -> None:
    episodes = [episode([(3, 2), (2, 0)], [0, 0], 1), Episode(0, [4], [5, 6, EOS])]
    rows, columns = turn_places(episodes)
    assert (rows.tolist(), columns.tolist()) == ([0, 0, 1], [2, 6, 2])
    mask = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0]])
    assert action_mask(episodes, mask).tolist() == [[1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0, 0]]
    assert [e.num_tokens for e in episodes] == [5, 3]


def test_item_52_kl_is_of_the_policys_own_tokens(tmp_path: Path) -> None:
    one = episode([(3, 2), (2, 0)], [0.5, -1.0], 1)
    assert one.logps is not None
    assert one.ref_logps is not None
    difference = (one.logps - one.ref_logps).tolist()
    assert one.kl == pytest.approx(sum(difference[:3]) + sum(difference[5:]), abs=1e-6)
    some = collector(tmp_path)
    some._finish([one], 0)
    assert some.metrics["objective/kl"] == pytest.approx(one.kl, abs=1e-6)


def test_item_52_each_turn_has_noise_and_each_episode_a_world_of_its_own(tmp_path: Path) -> None:
    begun: list[int] = []

    class Noted(Walk):
        def reset(self, seed: int, **row: Any) -> str:
            begun.append(seed)
            return super().reset(seed, **row)

    trainer = make(tmp_path, Noted)
    player = trainer.collector.player
    games = player._begun(trainer.collector.prompts, [0, 0], [3, 4], 7)
    assert begun == [world_seed(7, 3), world_seed(7, 4)]
    assert begun[0] != begun[1]
    first = player._noise(games, 7)
    assert torch.equal(first, episode_uniforms(7, [3, 4], trainer.args.max_completion_length))
    for game in games:
        game.texts.append("a")
    assert not torch.isclose(player._noise(games, 7), first).any()


def test_item_52_a_turn_that_was_cut_off_is_closed_by_the_environment(tmp_path: Path) -> None:
    trainer = make(tmp_path, Walk, max_completion_length=1)
    seen = 0
    for row in trainer.collector.player.whole(trainer.collector.prompts, [0] * 8, range(8), 7):
        for turn, later in itertools.pairwise(row[0].turns):
            between = row[0].completion_ids[turn.end : later.start]
            said = row[0].completion_ids[turn.end - 1]
            heard = trainer.processing_class(turn.answer)["input_ids"]
            assert between == (heard if said == EOS else [EOS, *heard])
            seen += said != EOS
    assert seen
