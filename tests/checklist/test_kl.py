"""Checklist 1 to 5: the KL enters once, with the right estimator, sign, coefficient and mask."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from recipes.lib.errors import UserError
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.metrics import describe_scores, explained_variance
from recipes.lib.ppo.objective import micro_batch_loss
from recipes.lib.ppo.returns import advantages_and_returns, token_rewards, whiten
from tests.helpers import tiny
from tests.helpers.tiny import last


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_item_01_with_scores_of_zero_rewards_are_the_kl_and_nothing_else(
    tmp_path: Path, kl_coef: float
) -> None:
    trainer = tiny.trainer(tmp_path, reward=tiny.nothing, kl_coef=kl_coef, lam=1.0)
    tiny.shake(trainer.actor_critic.policy)
    rollout = trainer.collector.rollout(0)
    difference = (rollout.old_logps - rollout.ref_logps) * rollout.completion_mask
    assert difference.abs().max() > 0.1
    # gamma and lambda are 1 and all values 0, so returns are the rewards still to come
    to_come = difference.flip(1).cumsum(1).flip(1) * rollout.completion_mask
    assert torch.allclose(rollout.returns, -kl_coef * to_come, atol=1e-6)


def test_item_01_the_loss_knows_neither_reference_nor_coefficient(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, kl_coef=0.3)
    tiny.shake(trainer.actor_critic.policy)
    batch = next(iter(trainer.stream))
    found = []
    for shift, kl_coef in ((0.0, 0.3), (5.0, 0.3), (0.0, 30.0)):
        trainer.args.kl_coef = kl_coef
        trainer.model.zero_grad()
        loss = trainer.compute_loss(
            trainer.model, batch | {"ref_logps": batch["ref_logps"] + shift}
        )
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        found.append((loss.item(), gradient))
    assert found[0][1].abs().max() > 1e-3
    for value, gradient in found[1:]:
        assert value == found[0][0]
        assert torch.equal(gradient, found[0][1])


def test_item_02_k1_as_a_reward_has_the_gradient_of_the_kl_and_k3_has_not() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    ref_logps = torch.randn(6, dtype=torch.float64).log_softmax(0)
    logps = logits.log_softmax(0)
    exact = (logps.exp() * (logps - ref_logps)).sum()
    (true_gradient,) = torch.autograd.grad(exact, logits, retain_graph=True)
    # all six tokens as six completions of one token, weighted by their probability
    _, kl = token_rewards(
        torch.zeros(6),
        last(torch.ones(6, 1)),
        logps.detach()[:, None],
        ref_logps[:, None],
        torch.ones(6, 1),
        1.0,
    )
    k1, k3 = kl[:, 0], torch.expm1(ref_logps - logps) - (ref_logps - logps)
    weights = logps.exp().detach()
    for estimate in (k1, k3):
        assert (weights * estimate).sum().item() == pytest.approx(exact.item(), rel=1e-12)
    gradients = [
        torch.autograd.grad((weights * e.detach() * logps).sum(), logits, retain_graph=True)[0]
        for e in (k1, k3)
    ]
    assert torch.allclose(gradients[0], true_gradient, atol=1e-12)
    assert (gradients[1] - true_gradient).abs().max() > 0.1 * true_gradient.abs().max()


def test_item_02_k3_in_the_reward_is_refused() -> None:
    with pytest.raises(UserError, match="kl_estimator=k3 in the reward biases the gradient"):
        PPOConfig(use_cpu=True, kl_estimator="k3")


def test_item_03_the_kl_of_samples_is_positive_and_that_of_the_distributions(
    tmp_path: Path,
) -> None:
    more = {"rollout_batch_size": 512, "total_episodes": 512, "sampling_batch_size": 512}
    trainer = tiny.trainer(tmp_path, scoring_batch_size=512, num_ppo_epochs=1, **more)
    tiny.shake(trainer.actor_critic.policy)
    rollout = trainer.collector.rollout(0)
    sampled, exact = (rollout.old_logps - rollout.ref_logps).sum(1).double(), []
    for prompt, completion in tiny.sequences(rollout):
        places = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        ours = tiny.log_probs(trainer.actor_critic.policy, prompt + completion)[places]
        theirs = tiny.log_probs(trainer.reference, prompt + completion)[places]
        exact.append((ours.exp() * (ours - theirs)).sum().item())
    assert rollout.completion_mask.sum() > 2000
    standard_error = sampled.std().item() / 512**0.5
    assert sampled.mean() > 3 * standard_error
    assert abs(sampled.mean().item() - sum(exact) / 512) < 4 * standard_error
    assert trainer.collector.metrics["objective/kl"] == pytest.approx(sampled.mean().item())


def test_item_03_no_key_can_truncate_the_sampling_distribution() -> None:
    names = {field.name for field in fields(PPOConfig)}
    truncating = {"top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "min_new_tokens"}
    assert names & truncating == set()


def test_item_04_the_coefficient_reacts_to_nats_per_completion_and_counts_episodes(
    tmp_path: Path,
) -> None:
    def coefficient(target: float | None) -> tuple[float, float]:
        trainer = tiny.trainer(tmp_path, kl_coef=0.2, target_kl=target, kl_horizon=100)
        tiny.shake(trainer.actor_critic.policy, 0.3)
        rollout = trainer.collector.rollout(0)
        # the rollout itself was rewarded with the old coefficient
        assert trainer.collector.metrics["objective/kl_coef"] == 0.2
        difference = (rollout.old_logps - rollout.ref_logps) * rollout.completion_mask
        return trainer.collector.kl.value, difference.sum(1).mean().item()

    value, kl = coefficient(None)
    assert value == 0.2
    assert kl > 0.1
    # eight episodes of a horizon of 100; an error of 0.1, and one that is clipped to 0.2
    assert coefficient(kl / 1.1)[0] == pytest.approx(0.2 * (1 + 0.1 * 8 / 100), rel=1e-6)
    assert coefficient(kl / 9.0)[0] == pytest.approx(0.2 * (1 + 0.2 * 8 / 100), rel=1e-12)


def widened(tensor: torch.Tensor, value: float) -> torch.Tensor:
    return torch.cat([tensor, torch.full((len(tensor), 3), value).to(tensor.dtype)], dim=1)


def test_item_05_more_padding_changes_no_loss_and_no_metric() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    logps, old, ref, values, old_values, entropy = torch.randn(6, 3, 4).unbind(0)
    scores, args = torch.tensor([1.0, -2.0, 0.5]), PPOConfig(use_cpu=True, entropy_coef=0.1)

    def numbers(wide: bool) -> dict[str, float]:
        def pad(tensor: torch.Tensor, value: float) -> torch.Tensor:
            # garbage too where the shorter batch has padding already
            tensor = torch.where(mask.bool(), tensor, value) if wide else tensor
            return widened(tensor, value) if wide else tensor

        mask_BC = widened(mask, 0) if wide else mask
        logps_BC, old_BC, ref_BC = pad(logps, 1.0), pad(old, 2.0), pad(ref, -3.0)
        rewards, kl = token_rewards(scores, last(mask_BC), old_BC, ref_BC, mask_BC, 0.1)
        advantages, returns = advantages_and_returns(
            rewards, pad(old_values, 50.0), mask_BC, 1.0, 0.95
        )
        inputs = {
            "action_mask": mask_BC,
            "num_tokens": 7.0,
            "old_logps": old_BC,
            "advantages": whiten(advantages, mask_BC),
            "returns": returns,
            "old_values": pad(old_values, 50.0),
            "rollout_number": 0,
            "returns_std": 1.3,
        }
        loss, shares = micro_batch_loss(
            args, inputs, logps_BC, pad(entropy, 9.0), pad(values, 70.0)
        )
        variance = explained_variance(pad(old_values, 50.0), returns, mask_BC)
        described = describe_scores(scores, kl, old_BC, mask_BC, 0.1)
        return described | shares | {"loss": loss.item(), "variance": variance}

    expected = numbers(wide=False)
    assert len(expected) > 12
    assert numbers(wide=True) == pytest.approx(expected, rel=1e-5, abs=1e-6)
