"""The weight of a cost with a limit: a Lagrange multiplier that is steered so that it is kept."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recipes.lib.errors import UserError
from recipes.lib.ppo.actor_critic import nonzero_std

# Found in simulations and on another seed than those of docs/benchmarks/cost.md: docs/log.md.
PROPORTIONAL, INTEGRAL = 1.5, 1.0
AHEAD = 2.0  # rollouts; a policy that falls fast towards the limit passes it if nobody looks ahead
HALF = 128  # episodes of a rollout that count for as much as all before them
WINDING = 0.25  # standard deviations; of a larger error the policy needs time, not more weight
MOST = 10.0  # a cost of ten times the spread of the scores leaves these 1 % of the variance


@dataclass
class CostController:
    """Multiplier of a cost: proportional to the error where it is heading, plus its integral.

    An integral alone, which is plain dual ascent, winds up: it goes on growing while the policy is
    still on its way, and then holds it far below the limit. So does the proportional term of a
    policy that comes down fast; what it has unlearned then, no multiplier of 0 brings back.

    Args:
        value: The multiplier, in reward per cost.
        integral: What the multiplier comes to rest at, in units.
        error: Smoothed distance from the limit, in standard deviations of the cost.
        cost: Mean cost of the newest rollout.
        cost_std: Unit of the cost, its spread in the first rollout in which costs differ.
        score_std: Unit of the scores, their spread there.

    Source:
        Stooke et al. 2020, "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods",
        equation 6; with units, a derivative in both directions, and a bound on how fast and how far
        the integral grows.
    """

    value: float = 0.0
    integral: float = 0.0
    error: float | None = None
    cost: float = 0.0
    cost_std: float = 0.0
    score_std: float = 1.0

    def update(self, costs_B: Tensor, scores_B: Tensor, limit: float) -> None:
        """Take note of a rollout, and set the multiplier that it is scored with.

        The scores are those of the objective without the cost; the limit is of the mean cost.
        """
        self.cost = costs_B.double().mean().item()
        if not self.cost_std:
            self.cost_std, self.score_std = nonzero_std(costs_B, 0.0), nonzero_std(scores_B)
        if not self.cost_std:  # nothing to choose from yet
            return
        error, share = (self.cost - limit) / self.cost_std, len(costs_B) / (len(costs_B) + HALF)
        before = error if self.error is None else self.error
        self.error = before + share * (error - before)
        ahead = self.error + AHEAD * (self.error - before)
        step = INTEGRAL * share * min(max(ahead, -WINDING), WINDING)
        self.integral = min(max(self.integral + step, 0.0), MOST)
        weight = min(max(PROPORTIONAL * ahead + self.integral, 0.0), MOST)
        self.value = weight * self.score_std / self.cost_std


def refuse_half_a_limit(cost_funcs: Any, limit: float | None) -> None:
    """Refuse a cost without a limit, and a limit without a cost."""
    if not cost_funcs and limit is not None:
        raise UserError(f"cost_limit={limit} limits nothing; give cost_funcs, or leave it out.")
    if cost_funcs and limit is None:
        raise UserError(f"cost_funcs={cost_funcs} has no limit; give cost_limit, or leave it out.")
