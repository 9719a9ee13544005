"""Numbers that describe a rollout, under the names of TRL 1.12's PPO, and where its time went.

Shapes: B episodes, C completion tokens. Masks are 1 where a token counts.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recipes.lib.ppo.rollouts import Episode

# Phases that process tokens and are in every log; the others are logged when they took place.
COUNTED = ("sampling", "scoring", "training")
OTHERS = ("people", "evaluation", "saving")
NUM_RECENT = 100  # episodes whose mean return is told where turns are rows


def describe_scores(
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
        length of completions in tokens; `_std` are standard deviations over episodes.
    """
    kl_B = kl_BC.sum(1)
    kl = kl_B.mean().item()
    return {
        "objective/kl": kl,
        "objective/kl_std": kl_B.std(correction=0).item(),
        "objective/kl_coef": kl_coef,
        "objective/entropy": -(logps_BC * mask_BC).sum(1).mean().item(),
        "objective/non_score_reward": -kl_coef * kl,
        "objective/rlhf_reward": scores_B.mean().item() - kl_coef * kl,
        "objective/scores": scores_B.mean().item(),
        "objective/scores_std": scores_B.std(correction=0).item(),
        "completions/mean_length": mask_BC.sum(1).float().mean().item(),
    }


def describe_episodes(
    episodes: Sequence[Episode], ended_B: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Scores as the rewards gave them, and how the completions are.

    Args:
        episodes: The episodes of a rollout.
        ended_B: 1 where a completion ended with the stop token.
        names: Names of the reward functions.

    Returns:
        Mean and standard deviation of the scores before normalising, clipping and penalty, the
        share of completions that ended, the number of different completions as a share of all, and
        of several rewards the mean of each over the episodes to which it applies, if to any.
    """
    raw_B = torch.tensor([e.score for e in episodes])
    metrics = {
        "objective/raw_scores": sum(e.score for e in episodes) / len(episodes),
        "objective/raw_scores_std": raw_B.std(correction=0).item(),
        "objective/eos_fraction": ended_B.mean().item(),
        "objective/distinct_fraction": len({tuple(e.completion_ids) for e in episodes})
        / len(episodes),
    }
    if len(names) > 1:
        said_BF = torch.tensor([e.said for e in episodes])
        for name, said_B in zip(names, said_BF.T, strict=True):
            if not said_B.isnan().all():
                metrics[f"rewards/{name}"] = said_B.nanmean().item()
    return metrics


def describe_costs(of_scores: dict[str, float], cost: float, multiplier: float) -> dict[str, float]:
    """The cost of a rollout, and what it takes from the rewards that `describe_scores` told.

    Args:
        of_scores: Those metrics.
        cost: Mean cost of the episodes.
        multiplier: Its weight, in reward per cost.

    Returns:
        Cost and multiplier, and the two rewards that the cost is a part of.
    """
    of_rewards = ("objective/non_score_reward", "objective/rlhf_reward")
    charged = {name: of_scores[name] - multiplier * cost for name in of_rewards}
    return {"objective/cost": cost, "objective/cost_multiplier": multiplier} | charged


def describe_turns(
    episodes: Sequence[Episode], before: dict[str, float], recent: list[tuple[float, int]]
) -> dict[str, float]:
    """How episodes in an environment went.

    Args:
        episodes: The rows of the rollout.
        before: What `describe_scores` and `describe_episodes` told of its rows.
        recent: Return and turns of the newest episodes that ended; those of this rollout come to
            them.

    Returns:
        Mean return and number of turns, and the share that a limit cut off, of those that ended in
        this rollout; where turns are rows, the scores of the newest episodes in place of theirs.
    """
    ended = [e for e in episodes if e.outcome is not None]
    outcomes = [e.outcome for e in ended if e.outcome is not None]
    recent[:] = [*recent, *outcomes][-NUM_RECENT:]
    metrics = {}
    if ended:
        cut = sum(bool(e.following_ids) for e in ended)
        metrics = _outcome(outcomes) | {"environment/cut_fraction": cut / len(ended)}
    if len(ended) == len(episodes) or not recent:
        return metrics
    mean, turns = _outcome(recent).values()
    std = torch.tensor([total for total, _ in recent]).std(correction=0).item()
    metrics |= {f"objective/{name}": mean for name in ("scores", "raw_scores")}
    metrics |= {f"objective/{name}_std": std for name in ("scores", "raw_scores")}
    return metrics | {"objective/rlhf_reward": mean + turns * before["objective/non_score_reward"]}


def _outcome(outcomes: Sequence[tuple[float, int]]) -> dict[str, float]:
    totals, turns = (sum(column) / len(outcomes) for column in zip(*outcomes, strict=True))
    return {"environment/return": totals, "environment/turns": turns}


def describe_values(values_BC: Tensor, returns_BC: Tensor, mask_BC: Tensor) -> dict[str, float]:
    """Values of the critic before the updates, and what they should have been.

    Returns:
        Mean of the values, mean and standard deviation of the returns, all over tokens, and the
        explained variance.
    """
    kept = mask_BC.bool()
    return {
        "val/explained_variance": explained_variance(values_BC, returns_BC, mask_BC),
        "val/values_mean": values_BC[kept].mean().item(),
        "val/returns_mean": returns_BC[kept].mean().item(),
        "val/returns_std": returns_BC[kept].std(correction=0).item(),
    }


def explained_variance(values_BC: Tensor, returns_BC: Tensor, mask_BC: Tensor) -> float:
    """Share of the returns' variance that the values explain.

    Returns:
        1 for perfect values, 0 for values no better than the mean return, below 0 for worse ones.
    """
    kept = mask_BC.bool()
    residual = (returns_BC - values_BC)[kept].var(correction=0)
    return 1.0 - (residual / returns_BC[kept].var(correction=0).clamp(min=1e-8)).item()


class Clock:
    """Adds up seconds by phase; a phase that is measured inside another one interrupts it."""

    def __init__(self) -> None:
        self.phase = ""  # outside of every phase nothing is added up
        self.since = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the time inside the block as that of a phase, and of no other."""
        outer = self.phase
        self.begin(phase)
        try:
            yield
        finally:
            self.begin(outer)

    def begin(self, phase: str) -> None:
        """Count the time from now on as that of a phase, until another one begins."""
        now = time.monotonic()
        if self.phase:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now

    def count(self, phase: str, tokens: int) -> None:
        """Note that a phase has processed so many tokens."""
        self.tokens[phase] = self.tokens.get(phase, 0) + tokens

    def take(self) -> dict[str, float]:
        """Metrics of the time since they were last taken.

        Returns:
            `time/<phase>` in seconds and `time/<phase>_tokens_per_second`.
        """
        self.begin(self.phase)
        happened = [phase for phase in OTHERS if self.seconds.get(phase)]
        metrics = {f"time/{p}": self.seconds.get(p, 0.0) for p in (*COUNTED, *happened)}
        for phase in COUNTED:
            seconds, tokens = self.seconds.get(phase, 0.0), self.tokens.get(phase, 0)
            if seconds and tokens:
                metrics[f"time/{phase}_tokens_per_second"] = tokens / seconds
        self.seconds, self.tokens = {}, {}
        return metrics

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the log after a resume covers its whole interval."""
        self.begin(self.phase)
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint."""
        self.seconds, self.tokens = dict(state["seconds"]), dict(state["tokens"])
        self.since = time.monotonic()
