"""What goes wrong in a PPO run, found in its logged numbers: likely cause, and the knob to turn.

`find` is a pure function of the rows that were logged. Rules on episodes look at the newest
rollouts that together hold MIN_EPISODES, so that a small rollout does not cry wolf.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from recipes.lib.ppo.actor_critic import ROUNDING
from recipes.lib.rewards.held_out import parting

Log = dict[str, float]

MIN_EPISODES = 32
NUM_ERRORS = 3.0  # standard errors below 0 at which a mean KL counts as negative
MIN_NEGATIVE_KL = 1e-3  # nats; below it rounding explains a negative mean
MAX_CLIP_FRACTION = 0.4
NUM_CLIPPED = 3  # rollouts in a row that are above it
COLLAPSED_SHARE = 0.1  # of the entropy per token that the run began with
COLLAPSED_ENTROPY = 0.01  # nats per token, whatever the run began with
MEAN_LOSS = 0.5  # value loss of a critic that always says the mean return
EXPLODED_FACTOR = 10.0  # times that, or times what the run's critic lost at its start

# Metrics that the rules read; nothing else is kept.
METRICS = (
    "objective/kl objective/kl_std objective/entropy completions/mean_length "
    "objective/distinct_fraction objective/scores objective/scores_std objective/raw_scores "
    "objective/raw_scores_std policy/clipfrac_avg loss/value_avg val/explained_variance "
    "val/values_mean val/returns_mean val/returns_std".split()
)
MULTIPLIER = "objective/cost_multiplier"


def find_problems(rows: Sequence[Log]) -> dict[str, str]:
    """Everything that is wrong with the newest rollout.

    Args:
        rows: Logged metrics, one row a rollout: the first of the run, then the newest ones in
            order. Each has `rollout` (its number) and `episodes` (how many it holds).

    Returns:
        By its kind, under which it is told only once in a run: what was seen, the likely cause and
        the knob, in at most 150 characters.
    """
    said = {kind: rule(rows) for kind, rule in RULES.items()}
    if said["same_completions"]:
        said["constant_reward"] = ""  # follows from it
    return {kind: message for kind, message in said.items() if message}


def _negative_kl(rows: Sequence[Log]) -> str:
    pool = _pool(rows)
    kl = sum(row["objective/kl"] for row in pool) / len(pool)
    variance = sum(row["objective/kl_std"] ** 2 / row["episodes"] for row in pool)
    error = variance**0.5 / len(pool)
    is_negative = kl < -max(NUM_ERRORS * error, MIN_NEGATIVE_KL)
    if not pool[0]["is_full"] or not is_negative:
        return ""
    return (
        f"KL is {kl:.3g} +- {error:.1g} nats per completion; no true KL is negative, so sampling "
        "and scoring differ. Try bf16=false or attn_implementation=eager."
    )


def _collapsed_entropy(rows: Sequence[Log]) -> str:
    first, last = _entropy(rows[0]), _entropy(rows[-1])
    if not last < max(COLLAPSED_SHARE * first, COLLAPSED_ENTROPY):
        return ""
    return (
        f"entropy is {last:.2g} nats per token, after {first:.2g} at the start: soon all texts are "
        "alike. Raise kl_coef or entropy_coef, or lower learning_rate."
    )


def _clipped(rows: Sequence[Log]) -> str:
    # A few rollouts may have it: a high learning rate at the very start can still end well.
    shares = [row["policy/clipfrac_avg"] for row in rows[-NUM_CLIPPED:]]
    if len(shares) < NUM_CLIPPED or not min(shares) > MAX_CLIP_FRACTION:
        return ""
    return (
        f"clip fraction is {shares[-1]:.2f}: the updates are too large for their rollout. Lower "
        "learning_rate or num_ppo_epochs, or raise rollout_batch_size."
    )


def _same_completions(rows: Sequence[Log]) -> str:
    pool = _pool(rows)
    is_same = all(row["objective/distinct_fraction"] * row["episodes"] < 1.5 for row in pool)
    if not pool[0]["is_full"] or not is_same:
        return ""
    return (
        f"all {_episodes(pool)} completions are the same, so none is better than another. Raise "
        "temperature, kl_coef or entropy_coef, or lower learning_rate."
    )


def _constant_reward(rows: Sequence[Log]) -> str:
    pool = _pool(rows)
    if pool[-1].get(MULTIPLIER):  # then there is a cost to learn from
        return ""
    if not pool[0]["is_full"] or not _is_constant(pool, "objective/scores"):
        return ""
    score = pool[-1]["objective/scores"]
    said = f"all {_episodes(pool)} scores are {score:.4g}: there is nothing to learn from. "
    if not _is_constant(pool, "objective/raw_scores"):
        return said + "The rewards differ before they are clipped: raise reward_clip."
    return said + "Check reward_funcs, and that max_completion_length leaves room for an answer."


def _is_constant(rows: Sequence[Log], name: str) -> bool:
    means = [row[name] for row in rows]
    # The mean of equal numbers can differ from them, and from other such means, by rounding.
    spread = max(means) - min(means) + max(row[f"{name}_std"] for row in rows)
    return spread <= ROUNDING * max(1.0, abs(means[-1]))


def _exploded_value_loss(rows: Sequence[Log]) -> str:
    loss = rows[-1]["loss/value_avg"]
    # A critic from a reward model may begin far off; that is no explosion if it comes closer.
    bound = max(MEAN_LOSS, _start_loss(rows[0]))
    if math.isfinite(loss) and loss <= EXPLODED_FACTOR * bound:
        return ""
    return (
        f"value loss is {loss:.3g}, where a critic that knows nothing has {bound:.2g}: its updates "
        "diverge. Lower critic_learning_rate or learning_rate."
    )


RULES: dict[str, Callable[[Sequence[Log]], str]] = {
    "negative_kl": _negative_kl,
    "entropy_collapse": _collapsed_entropy,
    "clip_fraction": _clipped,
    "same_completions": _same_completions,
    "constant_reward": _constant_reward,
    "value_loss": _exploded_value_loss,
}


def _pool(rows: Sequence[Log]) -> list[Log]:
    """The newest rollouts that together hold enough episodes; `is_full` says whether they do."""
    pool: list[Log] = []
    for row in reversed(rows):
        pool.insert(0, row)
        if _episodes(pool) >= MIN_EPISODES:
            break
    return [row | {"is_full": _episodes(pool) >= MIN_EPISODES} for row in pool]


def _episodes(rows: Sequence[Log]) -> int:
    return int(sum(row["episodes"] for row in rows))


def _entropy(row: Log) -> float:
    # Sampled, so rounding can leave a zero with a minus in front.
    return max(0.0, row["objective/entropy"] / row["completions/mean_length"])


def _start_loss(row: Log) -> float:
    """Value loss of the first rollout before its updates: variance of the error, mean squared."""
    offset = (row["val/returns_mean"] - row["val/values_mean"]) / max(row["val/returns_std"], 1e-6)
    return 0.5 * (1.0 - row["val/explained_variance"] + offset**2)


@dataclass
class Health:
    """Watches a run: what it needs of the past, and what it has told already.

    Args:
        rows: Rows as `find` takes them.
        warnings: What was told: kind, step (optimizer steps), episode and message.
    """

    rows: list[Log] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)

    def note(self, metrics: Log, rollout: int, episodes: int, step: int) -> list[dict[str, Any]]:
        """Take note of a log.

        Args:
            metrics: What is logged; a second log of the same rollout takes the first one's place.
            rollout: Number of the rollout.
            episodes: Episodes in each rollout.
            step: Optimizer step.

        Returns:
            The warnings that are new, also added to `warnings`.
        """
        row = {name: metrics[name] for name in METRICS} | {"rollout": rollout, "episodes": episodes}
        row[MULTIPLIER] = metrics.get(MULTIPLIER, 0.0)  # none without a cost
        if self.rows and self.rows[-1]["rollout"] == rollout:
            self.rows.pop()
        num_kept = max(math.ceil(MIN_EPISODES / episodes), NUM_CLIPPED) - 1
        self.rows = [*self.rows[:1], *self.rows[1:][-num_kept:], row]
        known = {warning["kind"] for warning in self.warnings}
        place = {"step": step, "episode": (rollout + 1) * episodes}
        new = [
            {"kind": kind, **place, "message": message}
            for kind, message in find_problems(self.rows).items()
            if kind not in known
        ]
        self.warnings += new
        return new


def check_health(trainer: Any, logs: Log) -> Log:
    """Look at what a PPOTrainer logs, and tell what is new.

    Args:
        trainer: The trainer.
        logs: Its metrics of one log.

    Returns:
        The metric of the warnings that were told in the run.
    """
    step, args, health = trainer.state.global_step, trainer.args, trainer.health
    rollout = (step - 1) // args.steps_per_rollout
    _tell(trainer, health.note(logs, rollout, args.rollout_batch_size, step))
    return {"health/warnings": len(health.warnings)}


def check_held_out(trainer: Any) -> None:
    """Look at the evaluations of a PPOTrainer, and tell once where held-out rewards parted."""
    args, found = trainer.args, parting(trainer.state.log_history)
    known = {warning["kind"] for warning in trainer.health.warnings}
    if found and found["kind"] not in known:
        episode = found["step"] * args.rollout_batch_size // args.steps_per_rollout
        trainer.health.warnings.append(found | {"episode": episode})
        _tell(trainer, [found])


def _tell(trainer: Any, new: list[dict[str, Any]]) -> None:
    for warning in new if trainer.is_world_process_zero() else ():
        tqdm.write(f"Warning: {warning['message']}", file=sys.stderr)  # around a progress bar
