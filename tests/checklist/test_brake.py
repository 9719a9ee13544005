"""Checklist 50: a rollout moves the policy no further once it is far from the one that sampled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from recipes.lib.ppo.config import PPOConfig
from tests.helpers import tiny

BOUND = 0.1  # nats per completion, of some five tokens
STEPS = 8  # of a rollout: two epochs of four mini-batches
SETTINGS = {
    "total_episodes": 48,
    "rollout_batch_size": 16,
    "num_mini_batches": 4,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "logging_steps": 1,
}


class Witness(TrainerCallback):
    """Before each step: the policy, the critic, and how far the mini-batch is from its sampler."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.policies: list[dict[str, torch.Tensor]] = []
        self.critics: list[list[torch.Tensor]] = []
        self.rates: list[float] = []
        self.distances: list[float] = []  # nats per completion
        self.of_tokens: list[float] = []  # nats per token

    def note(self) -> None:
        model = self.trainer.actor_critic
        of_critic = {id(p): p for p in model.critic_parameters()}
        names = dict(model.named_parameters())
        self.policies.append(
            {n: p.detach().clone() for n, p in names.items() if id(p) not in of_critic}
        )
        self.critics.append([p.detach().clone() for p in of_critic.values()])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note()
        ratios = []
        for batch in self.trainer._batches:
            for row in range(len(batch["prompt_ids"])):
                prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
                kept = batch["completion_mask"][row].bool()
                said = batch["completion_ids"][row][kept].tolist()
                logps = tiny.log_probs(self.trainer.actor_critic.policy, prompt + said)
                ours = logps[len(prompt) - 1 : -1].gather(1, torch.tensor(said)[:, None])[:, 0]
                ratios.append(ours - batch["old_logps"][row][kept].double())
        squares = 0.5 * torch.cat(ratios).square()
        self.distances.append(squares.sum().item() / len(ratios))
        self.of_tokens.append(squares.mean().item())
        self.trainer.model.train()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note()


def run(folder: Path, **more: Any) -> tuple[Any, Witness]:
    witness = Witness()
    trainer = tiny.trainer(folder, callbacks=[witness], **(SETTINGS | more))
    witness.trainer = trainer
    trainer.train()
    return trainer, witness


def moved(witness: Witness) -> list[bool]:
    """Whether the policy moved in each step."""
    pairs = zip(witness.policies, witness.policies[1:], strict=False)
    return [not tiny.same(before, after) for before, after in pairs]


def adapters() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear")


@pytest.mark.parametrize(("critic", "rate"), [("head", 5e-3), ("model", 5e-3), ("adapter", 1e-2)])
def test_item_50_past_the_bound_the_policy_rests_until_the_next_rollout_and_the_critic_learns_on(
    tmp_path: Path, critic: str, rate: float
) -> None:
    more: dict[str, Any] = {"critic": critic, "max_approx_kl": BOUND, "learning_rate": rate}
    if critic == "adapter":
        more["peft_config"] = adapters()
    trainer, witness = run(tmp_path, **more)
    assert trainer.state.global_step == 3 * STEPS == len(witness.distances)
    expected = []
    for first in range(0, 3 * STEPS, STEPS):
        within = [d <= BOUND for d in witness.distances[first : first + STEPS]]
        stop = within.index(False) if False in within else STEPS
        expected += [step < stop for step in range(STEPS)]
    assert moved(witness) == expected
    assert 3 < sum(expected) < 3 * STEPS - 3  # each rollout begins anew, and the brake was on
    critics = zip(witness.critics, witness.critics[1:], strict=False)
    assert all(
        not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))
        for before, after in list(critics)[1:]  # a head of zeros gives its trunk no gradient yet
    )
    # the schedule goes on, and what is logged is what happened
    rates = [rate * (1 - n / 24) for n in range(1, 25)]
    assert witness.rates == pytest.approx(rates)
    rows = [row for row in trainer.state.log_history if "policy/braked" in row]
    assert [row["policy/braked"] for row in rows] == [float(not m) for m in expected]
    assert [row["policy/approxkl_avg"] for row in rows] == pytest.approx(
        witness.of_tokens, rel=1e-3, abs=1e-7
    )


def test_item_50_of_long_completions_the_tokens_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.lib.ppo.trainer.MOST_TOKENS", 2)
    _, witness = run(tmp_path, max_approx_kl=BOUND)
    expected = []
    for first in range(0, 3 * STEPS, STEPS):
        within = [2 * d <= BOUND for d in witness.of_tokens[first : first + STEPS]]
        stop = within.index(False) if False in within else STEPS
        expected += [step < stop for step in range(STEPS)]
    assert moved(witness) == expected
    assert expected != [d <= BOUND for d in witness.distances]
    assert not all(expected)


def test_item_50_the_mini_batch_decides_however_it_is_cut_up(tmp_path: Path) -> None:
    found = []
    for micro_batch in (1, 4):
        more = {"per_device_train_batch_size": micro_batch, "max_approx_kl": BOUND}
        _, witness = run(tmp_path / str(micro_batch), **more)
        found.append(moved(witness))
    assert found[0] == found[1]
    assert not all(found[0])


def test_item_50_a_bound_that_is_not_reached_changes_no_bit(tmp_path: Path) -> None:
    assert PPOConfig(use_cpu=True).max_approx_kl is not None  # on by default
    ends = []
    for name, bound in (("none", None), ("far", 1e6)):
        trainer, _ = run(tmp_path / name, max_approx_kl=bound)
        ends.append(tiny.state(trainer.model))
        braked = [row.get("policy/braked") for row in trainer.state.log_history if "loss" in row]
        assert braked == [bound and 0.0] * len(braked)
    assert tiny.same(*ends)


def test_item_50_several_steps_are_logged_as_the_share_behind_the_brake(tmp_path: Path) -> None:
    each, _ = run(tmp_path / "each", max_approx_kl=BOUND)
    together, _ = run(tmp_path / "together", max_approx_kl=BOUND, logging_steps=STEPS)
    one = [row["policy/braked"] for row in each.state.log_history if "policy/braked" in row]
    means = [sum(one[i : i + STEPS]) / STEPS for i in range(0, 3 * STEPS, STEPS)]
    rows = [row["policy/braked"] for row in together.state.log_history if "policy/braked" in row]
    assert rows == pytest.approx(means)
    assert any(0.0 < share < 1.0 for share in rows)
