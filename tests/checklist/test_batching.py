"""Checklist 34 to 43: any split is the same step; steps, rates and metrics are counted right."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from recipes.lib.generation.sampling import episode_uniforms
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.metrics import describe_scores, explained_variance
from recipes.lib.ppo.rollouts import Rollout, RolloutStream
from tests.helpers import tiny


class Recorder(TrainerCallback):
    """Keeps the gradients of the first optimizer step, and the rates of every one."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.rates: list[list[float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.rates.append([group["lr"] for group in kwargs["optimizer"].param_groups])
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}


def test_item_34_every_split_into_micro_batches_has_the_gradient_of_the_whole(
    tmp_path: Path,
) -> None:
    found = []
    for size in (4, 2, 1):  # accumulation 1, 2 and 4 of a mini-batch of four completions
        recorder = Recorder()
        trainer = tiny.trainer(
            tmp_path,
            per_device_train_batch_size=size,
            callbacks=[recorder],
            total_episodes=8,
            max_grad_norm=1e9,  # a clipped gradient would hide a wrong scale
            entropy_coef=0.1,
        )
        tiny.shake(trainer.actor_critic.critic.score)
        trainer.train()
        lengths = trainer.stream.rollout.completion_mask.sum(1)
        assert lengths.min() < lengths.max()
        found.append(recorder.gradients)
    assert max(gradient.abs().max() for gradient in found[0].values()) > 1e-2
    for other in found[1:]:
        assert all(torch.allclose(found[0][n], other[n], atol=1e-6, rtol=1e-5) for n in found[0])


def test_item_35_steps_are_rollouts_times_epochs_times_mini_batches(tmp_path: Path) -> None:
    recorder = Recorder()
    settings = {"total_episodes": 24, "num_ppo_epochs": 3, "per_device_train_batch_size": 1}
    trainer = tiny.trainer(tmp_path, callbacks=[recorder], **settings)
    trainer.train()
    # three rollouts of eight, three epochs, two mini-batches, whatever the micro-batch
    assert len(recorder.rates) == trainer.state.global_step == 18


def numbered_rollout(number: int) -> Rollout:
    """Eight completions of one token whose id is the number of the episode."""
    ids, ones = torch.arange(8)[:, None], torch.ones(8, 1)
    return Rollout(ids, ones.long(), ids, ones.long(), *[ones] * 6)


def test_item_36_every_epoch_has_its_own_order_and_each_episode_once(tmp_path: Path) -> None:
    settings = tiny.SETTINGS | {"total_episodes": 16, "num_ppo_epochs": 3}

    def orders(seed: int) -> list[list[int]]:
        stream = RolloutStream(PPOConfig(str(tmp_path), seed=seed, **settings), numbered_rollout)
        ids = [i for _, b in zip(range(24), stream, strict=False) for i in b["completion_ids"]]
        return [[int(i) for i in ids[start : start + 8]] for start in range(0, 48, 8)]

    found = orders(1)
    assert all(sorted(order) == list(range(8)) for order in found)
    assert len({tuple(order) for order in found}) == 6  # three epochs of two rollouts
    assert orders(1) == found != orders(2)


def test_item_36_within_an_optimizer_step_like_lengths_stand_together(tmp_path: Path) -> None:
    long = "a b c d e f g h i j k l"
    trainer = tiny.trainer(tmp_path, prompts=["a", long, "b", f"{long} m"])
    batches = [batch for _, batch in zip(range(8), trainer.stream, strict=False)]
    lengths = [(b["prompt_mask"].sum(1) + b["completion_mask"].sum(1)).tolist() for b in batches]
    # of two micro-batches each
    steps = [first + second for first, second in zip(lengths[::2], lengths[1::2], strict=True)]
    assert all(step == sorted(step) for step in steps)
    assert len({tuple(step) for step in steps}) > 1  # who is in a step is drawn, as before
    widths = {batch["prompt_ids"].shape[1] for batch in batches}
    assert len(widths) > 1  # short prompts are not padded to the longest


def test_item_37_each_optimizer_step_logs_its_own_clip_fraction(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, logging_steps=1, num_ppo_epochs=3, learning_rate=3e-2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "policy/clipfrac_avg" in row]
    assert len(rows) == 12
    for first in (0, 6):  # the two rollouts: nothing before the first update, and it grows
        fractions = [row["policy/clipfrac_avg"] for row in rows[first : first + 6]]
        assert fractions[0] == 0.0
        assert sum(fractions[4:]) > sum(fractions[:2]) >= 0.0
        assert rows[first]["policy/approxkl_avg"] < 1e-9


def test_item_38_the_configured_epsilon_reaches_every_group(tmp_path: Path) -> None:
    assert PPOConfig(use_cpu=True).adam_epsilon == 1e-5
    settings = {"adam_epsilon": 3e-4, "weight_decay": 0.1, "critic_learning_rate": 1e-3}
    trainer = tiny.trainer(tmp_path, adam_beta2=0.9, **settings)
    optimizer = trainer.create_optimizer()
    groups = optimizer.param_groups
    assert [group["eps"] for group in groups] == [3e-4] * len(groups)
    assert {group["betas"] for group in groups} == {(0.9, 0.9)}
    # policy and critic, each with and without decay; every parameter in one of them
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {
        (rate, decay) for rate in (1e-2, 1e-3) for decay in (0.0, 0.1)
    }
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in trainer.model.parameters() if p.requires_grad)
    of_critic = {id(p) for p in trainer.actor_critic.critic.parameters()}
    assert {id(p) for g in groups if g["lr"] == 1e-3 for p in g["params"]} == of_critic


def test_item_39_the_rate_falls_linearly_and_ends_with_one_part_in_n(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = tiny.trainer(
        tmp_path, callbacks=[recorder], learning_rate=8e-3, critic_learning_rate=1.6e-2
    )
    trainer.train()
    # two rollouts of two epochs of two mini-batches: eight steps, the last with rate / 8
    policy = [8e-3 * (8 - k) / 8 for k in range(8)]
    for k, rates in enumerate(recorder.rates):
        assert sorted(set(rates)) == pytest.approx([policy[k], 2 * policy[k]])
    assert len(recorder.rates) == 8
    assert min(recorder.rates[-1]) == pytest.approx(1e-3)


def test_item_40_episodes_of_one_prompt_have_noise_of_their_own(tmp_path: Path) -> None:
    uniforms = episode_uniforms(0, range(16), 6)
    assert len({tuple(row.tolist()) for row in uniforms}) == 16
    trainer = tiny.trainer(tmp_path, num_generations=8, prompts=["a b"])
    first, second = trainer.collector.rollout(0), trainer.collector.rollout(1)
    said = [tuple(c) for r in (first, second) for _, c in tiny.sequences(r)]
    assert len(set(said)) > 12  # of sixteen; short ones may coincide


def test_item_42_metrics_are_what_their_names_say() -> None:
    # two completions of two and one tokens; KL 0.5 - 0.1 and 0.2 nats per completion
    mask = torch.tensor([[1, 1], [1, 0]])
    kl, logps = torch.tensor([[0.5, -0.1], [0.2, 0.0]]), torch.tensor([[-1.0, -2.0], [-4.0, 7.0]])
    described = describe_scores(torch.tensor([3.0, 1.0]), kl, logps, mask, 0.1)
    expected = {
        "objective/kl": 0.3,
        "objective/kl_std": 0.1,  # 0.4 and 0.2
        "objective/kl_coef": 0.1,
        "objective/entropy": 3.5,  # (1 + 2 + 4) / 2, per completion
        "objective/non_score_reward": -0.03,
        "objective/rlhf_reward": 1.97,
        "objective/scores": 2.0,
        "objective/scores_std": 1.0,
        "completions/mean_length": 1.5,
    }
    assert described == pytest.approx(expected, rel=1e-6)
    returns, values = torch.tensor([[1.0, 3.0], [5.0, 99.0]]), torch.tensor([[2.0, 3.0], [4.0, 0]])
    # returns vary by 8/3, what the values leave (-1, 0, 1) by 2/3
    assert explained_variance(values, returns, mask) == pytest.approx(0.75, rel=1e-6)


def test_item_42_scores_are_logged_before_and_after_the_penalty_and_entropy_from_the_logits(
    tmp_path: Path,
) -> None:
    uniform = tiny.llama()
    uniform.lm_head.weight.data.zero_()
    trainer = tiny.trainer(tmp_path, uniform, missing_eos_penalty=5.0, learning_rate=1e-9)
    trainer.train()
    row = next(row for row in trainer.state.log_history if "objective/scores" in row)
    cut_off = 1.0 - row["objective/eos_fraction"]
    assert 0.0 < cut_off < 1.0
    assert row["objective/raw_scores"] - row["objective/scores"] == pytest.approx(5.0 * cut_off)
    # every token of sixteen is equally likely, at each step of every completion
    assert row["policy/entropy_avg"] == pytest.approx(math.log(16), abs=1e-5)
    length = row["completions/mean_length"]
    assert row["objective/entropy"] == pytest.approx(length * math.log(16), abs=1e-4)
    assert row["val/ratio"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("critic", ["head", "model"])
def test_item_43_the_head_sees_completions_and_the_token_before_them_only(
    tmp_path: Path, critic: str
) -> None:
    trainer = tiny.trainer(tmp_path, critic=critic, prompts=["a b c d e f g h i j k l"])
    sizes: list[torch.Size] = []
    for model in (trainer.actor_critic.policy, trainer.reference):
        model.lm_head.register_forward_hook(lambda _, x, y: sizes.append(y.shape[:-1]))
    rollout = trainer.collector.rollout(0)
    # sampling reads one position of each row; scoring the tokens of the completions, and no more
    scored = [size[0] for size in sizes if len(size) == 1]
    assert {size[1] for size in sizes if len(size) == 2} == {1}
    assert sum(scored) == 2 * int(rollout.completion_mask.sum())
