"""Checklist 51: a cost is charged at a multiplier that neither winds up nor charges for nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.lib.errors import UserError
from recipes.lib.ppo.cost_controller import CostController
from tests.helpers import tiny
from tests.helpers.mistakes import attempt


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]


def update(controller: CostController, costs: list[float], limit: float) -> None:
    controller.update(torch.tensor(costs), torch.tensor([1.0, 3.0] * (len(costs) // 2)), limit)


def test_item_51_the_multiplier_is_proportional_to_the_error_plus_its_bounded_integral() -> None:
    controller = CostController()
    update(controller, [0.0, 4.0], 1.6)  # mean 2, deviation 2: an error of 0.2; scores deviate by 1
    share = 2 / 130
    assert controller.cost == 2.0
    assert controller.integral == pytest.approx(share * 0.2)
    assert controller.value == pytest.approx((1.5 * 0.2 + share * 0.2) * 1 / 2)
    update(controller, [8.0, 8.0], 1.6)  # an error of 3.2, smoothed, and the unit stays
    step = share * (3.2 - 0.2)
    ahead = 0.2 + step + 2 * step  # where it is in two more rollouts like this one
    integral = share * (0.2 + min(ahead, 0.25))
    assert controller.integral == pytest.approx(integral)
    assert controller.value == pytest.approx((1.5 * ahead + integral) / 2)
    far = CostController()
    update(far, [0.0, 4.0], 0.0)  # an error of 1: that much needs time, not a larger integral
    assert far.integral == pytest.approx(share * 0.25)
    assert far.value == pytest.approx((1.5 * 1.0 + share * 0.25) / 2)


def test_item_51_below_the_limit_nothing_is_charged_and_nothing_is_saved_up() -> None:
    controller = CostController()
    for _ in range(200):
        update(controller, [0.0, 2.0] * 64, 5.0)
        assert (controller.value, controller.integral) == (0.0, 0.0)
    for _ in range(20):
        update(controller, [6.0, 6.0] * 64, 5.0)
    # an integral that had gone down with the error of -4 would be far below 0
    assert controller.value > 3.0


def test_item_51_above_a_limit_that_cannot_be_kept_the_multiplier_has_a_bound() -> None:
    controller = CostController()
    for _ in range(2000):
        update(controller, [3.0, 5.0] * 64, 0.0)
    assert controller.integral == 10.0
    assert controller.value == 10.0  # deviations of the scores for one of the cost
    for _ in range(60):  # and it comes back
        update(controller, [0.0, 0.0] * 64, 4.0)
    assert controller.value == 0.0


def test_item_51_units_of_cost_and_reward_do_not_matter() -> None:
    plain, other = CostController(), CostController()
    costs = torch.tensor([[0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 2.0]])
    scores = torch.tensor([0.5, 1.0, -1.0, 2.0])
    for costs_B in costs:
        plain.update(costs_B, scores, 0.5)
        other.update(64 * costs_B, 8 * scores, 32.0)
        assert other.value == pytest.approx(plain.value / 8) != 0.0


def test_item_51_where_all_costs_are_equal_there_is_nothing_to_choose() -> None:
    controller = CostController()
    update(controller, [7.0, 7.0], 1.0)
    assert (controller.value, controller.integral, controller.error) == (0.0, 0.0, None)
    assert controller.cost == 7.0
    update(controller, [6.0, 8.0], 1.0)
    assert controller.value > 0.0


@pytest.mark.parametrize("speed", [0.1, 0.3])
def test_item_51_it_comes_to_rest_where_the_optimum_has_its_multiplier(speed: float) -> None:
    """A plant in closed form: one of two answers costs 1, and is worth 1 more.

    The best policy gives it with the odds of exp((1 - multiplier) / 0.5); each rollout goes a part
    of the way there, and not far. A cost of 0.25 asks for a multiplier of 1 + 0.5 ln 3.
    """
    controller, logit, costs = CostController(), 2.0, []
    for _ in range(150):
        number = round(256 / (1 + math.exp(-logit)))
        costs_B = torch.tensor([1.0] * number + [0.0] * (256 - number))
        controller.update(costs_B, costs_B, 0.25)
        step = speed * ((1 - controller.value) / 0.5 - logit)
        logit += min(max(step, -0.2), 0.2)
        costs.append(number / 256)
    assert costs[-1] == pytest.approx(0.25, abs=0.01)
    assert controller.value == pytest.approx(1 + 0.5 * math.log(3), abs=0.05)
    assert min(costs) > 0.12  # an integral alone falls to 0.02 on its way


@pytest.mark.parametrize("more", [{}, {"normalize_rewards": True, "reward_clip": 0.5}])
def test_item_51_the_score_is_charged_the_cost_of_its_own_episode_behind_clip_and_scale(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    trainer = tiny.trainer(tmp_path, cost_funcs=[even, even], cost_limit=0.5, lam=1.0, **more)
    tiny.shake(trainer.actor_critic.policy, 0.3)
    rollout = trainer.collector.rollout(0)
    said = [ids for _, ids in tiny.sequences(rollout)]
    costs = 2 * torch.tensor(even(said))  # of two functions the sum
    scores = torch.tensor(tiny.every_third(said))
    if more:
        scores = (scores / scores.std(correction=0)).clamp(-0.5, 0.5)
    value = trainer.collector.cost.value
    expected = CostController()
    expected.update(costs, scores, 0.5)
    assert value == pytest.approx(expected.value, rel=1e-5) != 0.0
    kl_B = ((rollout.old_logps - rollout.ref_logps) * rollout.completion_mask).sum(1)
    # with gamma = lambda = 1 the return before the first token is all that is to come
    charged = scores - value * costs - trainer.args.kl_coef * kl_B
    assert torch.allclose(rollout.returns[:, 0], charged, atol=1e-4)
    logged = trainer.collector.metrics
    assert logged["objective/cost"] == pytest.approx(costs.mean().item())
    assert logged["objective/cost_multiplier"] == value
    assert logged["objective/scores"] == pytest.approx(scores.mean().item())
    assert logged["objective/rlhf_reward"] == pytest.approx(charged.mean().item(), abs=1e-4)
    drift = (value * costs + trainer.args.kl_coef * kl_B).mean().item()
    assert logged["objective/non_score_reward"] == pytest.approx(-drift, abs=1e-4)


def test_item_51_a_limit_that_is_not_reached_changes_no_bit(tmp_path: Path) -> None:
    ends, logs = [], []
    for name, more in (("none", {}), ("far", {"cost_funcs": even, "cost_limit": 50.0})):
        trainer = tiny.trainer(tmp_path / name, total_episodes=24, **more)
        trainer.train()
        ends.append(tiny.state(trainer.model))
        rows = [row for row in trainer.state.log_history if "loss" in row]
        logs.append([{k: v for k, v in row.items() if "time" not in k} for row in rows])
    assert tiny.same(*ends)
    assert all(row.pop("objective/cost") > 0.0 for row in logs[1])
    assert [row.pop("objective/cost_multiplier") for row in logs[1]] == [0.0] * 3
    assert logs[0] == logs[1]


def test_item_51_a_cost_and_its_limit_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cost_limit=1\.0 limits nothing; give cost_funcs"):
        tiny.trainer(tmp_path, cost_limit=1.0)
    with pytest.raises(UserError, match="has no limit; give cost_limit, or leave it out"):
        tiny.trainer(tmp_path, cost_funcs=[even])
    with pytest.raises(UserError, match="cost_limit=nan must be a finite number"):
        tiny.trainer(tmp_path, cost_funcs=[even], cost_limit=math.nan)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    words = "--model_name_or_path none --dataset_name prompts.jsonl --reward_funcs none"
    answer = attempt("ppo", [*words.split(), "--cost_funcs", "rewards.py:long"], tmp_path)
    said = "cost_funcs=['rewards.py:long'] has no limit; give cost_limit, or leave it out."
    assert (answer.code, answer.sentence(), answer.changed) == (2, said, [])
