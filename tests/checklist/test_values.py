"""Checklist 26 to 33: advantages, the critic's index and start, and that it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForSequenceClassification

from recipes.lib.ppo.critic import load_value_weights, save_value_weights
from recipes.lib.ppo.objective import value_loss
from recipes.lib.ppo.returns import advantages_and_returns, whiten
from tests.helpers import tiny


def test_item_26_values_behind_the_end_do_not_leak_backwards() -> None:
    mask = torch.tensor([[1, 1, 0]])
    rewards, values = torch.tensor([[0.0, 1.0, 50.0]]), torch.tensor([[0.25, 0.5, 100.0]])
    # gamma 1, lambda 0.5: delta = 1 - 0.5 at the last token, 0.5 - 0.25 + 0.5 * 0.5 before it
    advantages, returns = advantages_and_returns(rewards, values, mask, 1.0, 0.5)
    assert advantages.tolist() == [[0.5, 0.5, 0.0]]
    assert returns.tolist() == [[0.75, 1.0, 0.0]]


@pytest.mark.parametrize("critic", ["head", "model"])
def test_item_28_the_value_of_a_token_is_that_of_the_state_before_it(
    tmp_path: Path, critic: str
) -> None:
    module = tiny.trainer(tmp_path, critic=critic).actor_critic.eval()
    tiny.shake(module)
    prompt, completion = [4, 5, 6], [7, 8, 9, 10]
    with torch.no_grad():
        ids = torch.tensor([prompt + completion])
        logps, _, values = module(ids, torch.ones(1, 7).long(), 4, 1.0)
        assert values.shape == (1, 4)
        for t in range(4):
            changed = [*completion[:t], 12, *completion[t + 1 :]]
            ids = torch.tensor([prompt + changed])
            others, _, moved = module(ids, torch.ones(1, 7).long(), 4, 1.0)
            # all up to the state before token t is untouched by it, all after it moves
            assert torch.equal(values[0, : t + 1], moved[0, : t + 1])
            assert torch.equal(logps[0, :t], others[0, :t])
            assert (values[0, t + 1 :] != moved[0, t + 1 :]).all()


def test_item_29_value_clipping_by_hand_on_both_sides_of_the_range() -> None:
    # old value 0, range 0.2; V and R: the larger error of V and of V clipped to +-0.2 counts
    values = torch.tensor([[0.5, -0.5, 0.5, 0.1]])
    returns = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    # 0.5 to 0.2: 0.64 over 0.25; -0.5 to -0.2: 1.44 below 2.25; 0.25 over 0.04; inside: 0.81
    loss, sums = value_loss(values, torch.zeros(1, 4), returns, torch.ones(1, 4), 0.2, 4.0)
    assert loss.item() == pytest.approx(0.5 * (0.64 + 2.25 + 0.25 + 0.81) / 4, rel=1e-6)
    assert sums["val/clipfrac_avg"].item() == 1
    masked, _ = value_loss(
        values, torch.zeros(1, 4), returns, torch.tensor([[1, 0, 0, 0]]), 0.2, 1.0
    )
    assert masked.item() == pytest.approx(0.32, rel=1e-6)


def test_item_30_advantages_are_whitened_over_the_real_tokens_of_the_whole_rollout(
    tmp_path: Path,
) -> None:
    trainer = tiny.trainer(tmp_path)
    rollout = trainer.collector.rollout(0)
    mask = rollout.completion_mask
    assert mask.sum() < mask.numel()
    kept = rollout.advantages[mask.bool()].double()
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert kept.var(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    assert (rollout.advantages * (1 - mask) == 0).all()
    raw = (rollout.returns - rollout.old_values)[mask.bool()].double()
    expected = (raw - raw.mean()) / raw.std(correction=0)
    assert torch.allclose(kept, expected, atol=1e-5)
    # not once more for each mini-batch
    batch = next(iter(trainer.stream))
    assert batch["advantages"].abs().sum() > 0
    assert set(batch["advantages"].flatten().tolist()) <= set(rollout.advantages.flatten().tolist())


def test_item_30_a_single_token_is_whitened_to_zero_and_not_to_nan() -> None:
    assert whiten(torch.tensor([[4.0, 7.0]]), torch.tensor([[1, 0]])).tolist() == [[0.0, 0.0]]


def test_item_31_a_critic_from_a_reward_model_starts_with_its_scores(tmp_path: Path) -> None:
    model = tiny.llama(seed=3, kind=LlamaForSequenceClassification, num_labels=1).eval()
    model.save_pretrained(tmp_path / "reward")
    tiny.tokenizer().save_pretrained(tmp_path / "reward")
    trainer = tiny.trainer(tmp_path, critic_model_name_or_path=str(tmp_path / "reward"))
    prompt, completion = [4, 5, 6], [7, 8, 9]
    with torch.no_grad():
        _, _, values = trainer.actor_critic.eval()(
            torch.tensor([prompt + completion]), torch.ones(1, 6).long(), 3, 1.0
        )
        for t in range(3):
            expected = model(input_ids=torch.tensor([prompt + completion[:t]])).logits[0, 0]
            assert torch.allclose(values[0, t], expected, atol=1e-5)
    assert all(p.requires_grad for p in trainer.actor_critic.critic.parameters())


def value_error(trainer: Any, rollout: Any) -> float:
    mask = rollout.completion_mask
    inputs = torch.cat([rollout.prompt_ids, rollout.completion_ids], 1)
    attention = torch.cat([rollout.prompt_mask, mask], 1)
    with torch.no_grad():
        _, _, values = trainer.actor_critic.eval()(inputs, attention, mask.shape[1], 1.0)
    return (((values - rollout.returns) * mask).square().sum() / mask.sum()).item()


@pytest.mark.parametrize("critic", ["head", "model"])
def test_item_32_the_critic_comes_closer_to_the_returns_of_a_frozen_rollout(
    tmp_path: Path, critic: str
) -> None:
    # a warm-up, so that only the critic moves and the rollout stays what it was
    settings = {"critic_warmup_rollouts": 9, "total_episodes": 8, "num_ppo_epochs": 24}
    more = {"cliprange_value": 10.0, "critic": critic, "learning_rate": 1e-2, "vf_coef": 1.0}
    trainer = tiny.trainer(tmp_path, **settings, **more)
    rollouts: list[Any] = []
    make_rollout = trainer.stream.make_rollout
    trainer.stream.make_rollout = lambda n: rollouts.append(make_rollout(n)) or rollouts[-1]  # type: ignore[func-returns-value]
    trainer.train()
    (rollout,) = rollouts
    off = (rollout.old_values - rollout.returns) * rollout.completion_mask
    at_start = (off.square().sum() / rollout.completion_mask.sum()).item()
    assert value_error(trainer, rollout) < 0.7 * at_start


@pytest.mark.parametrize("critic", ["head", "model"])
def test_item_31_a_critic_of_zeros_begins_at_the_mean_score(tmp_path: Path, critic: str) -> None:
    def far_off(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [len(ids) - 40.0 for ids in completion_ids]

    trainer = tiny.trainer(tmp_path, reward=far_off, critic=critic, total_episodes=8)
    rollout = next(iter(trainer.stream)) and trainer.stream.rollout
    mean = (rollout.completion_mask.sum(1).float() - 40.0).mean()
    assert torch.allclose(rollout.old_values, mean * rollout.completion_mask)
    # the trainer's own forward says the same, and a checkpoint keeps it
    save_value_weights(trainer.actor_critic, tmp_path)
    fresh = tiny.trainer(tmp_path, reward=far_off, critic=critic, total_episodes=8)
    load_value_weights(fresh.actor_critic, tmp_path)
    for one in (trainer, fresh):
        ones = torch.ones(1, 4).long()
        _, _, values = one.actor_critic.eval()(ones, ones, 2, 1.0)
        assert values.flatten().tolist() == pytest.approx([mean.item()] * 2)


def test_item_31_equal_first_scores_do_not_fix_the_units_of_the_values(tmp_path: Path) -> None:
    calls: list[int] = []

    def late(completion_ids: list[list[int]], **_: Any) -> list[float]:
        calls.append(1)
        # 0.1 has no exact fp32, so its mean and deviation are off by rounding
        return [0.1 + 100.0 * (len(calls) > 1) * (sum(ids) % 3) for ids in completion_ids]

    trainer = tiny.trainer(tmp_path, reward=late, total_episodes=24, log_completions=True)
    units, rollouts, make = [], [], trainer.stream.make_rollout

    def noted(number: int) -> Any:
        rollouts.append(make(number))
        units.append(trainer.actor_critic.value_scale.item())
        return rollouts[-1]

    trainer.stream.make_rollout = noted
    trainer.train()  # in the first rollout the critic learns from the KL and from rounding alone
    assert units[0] == 1.0
    assert units[1] > 50.0
    assert units[2] == units[1]
    # what was said in the old units is told in the new ones, as the forward pass says it
    assert rollouts[1].old_values.abs().max() > 50.0


def test_item_31_one_state_alone_does_not_begin_the_values_again(tmp_path: Path) -> None:
    def first_id(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(ids[0]) for ids in completion_ids]

    settings = {"prompts": ["a b"], "max_completion_length": 1, "total_episodes": 24}
    trainer = tiny.trainer(tmp_path, reward=first_id, **settings)
    offsets, make = [], trainer.stream.make_rollout

    def noted(number: int) -> Any:
        rollout = make(number)
        offsets.append(trainer.actor_critic.value_offset.item())
        return rollout

    trainer.stream.make_rollout = noted
    trainer.train()
    assert len(set(offsets)) == 1


def test_item_24_rewards_of_another_scale_and_centre_train_the_same_policy(tmp_path: Path) -> None:
    def trained(scale: float, shift: float) -> dict[str, torch.Tensor]:
        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [scale * (sum(ids) % 5) + shift for ids in completion_ids]

        # powers of two, and no KL: what differs is the scale and nothing else
        settings = {"kl_coef": 0.0, "total_episodes": 16, "critic": "model", "lam": 1.0}
        trainer = tiny.trainer(tmp_path, reward=reward, **settings)
        trainer.train()
        return tiny.state(trainer.actor_critic.policy)

    plain, other = trained(1.0, 0.0), trained(8.0, -64.0)
    for name, weight in plain.items():
        assert torch.allclose(weight, other[name], atol=2e-3), name


def test_item_32_reward_model_and_reference_do_not_move_by_a_bit(tmp_path: Path) -> None:
    model = tiny.llama(seed=3, kind=LlamaForSequenceClassification, num_labels=1)
    words = tiny.tokenizer()
    trainer = tiny.trainer(tmp_path, reward=model, reward_processing_classes=words)
    frozen = {"reward": model, "reference": trainer.reference}
    before = {name: tiny.state(module) for name, module in frozen.items()}
    start = tiny.state(trainer.model)
    trainer.train()
    moved = {n for n, t in tiny.state(trainer.model).items() if not torch.equal(start[n], t)}
    # every trainable tensor moved: policy and critic, each layer of both, and the values' units
    units = {"value_offset", "value_scale"}
    names = units | {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved == names
    for name, module in frozen.items():
        assert tiny.same(before[name], tiny.state(module)), name
        assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("critic", ["head", "model", "adapter"])
def test_item_31_a_warm_up_moves_the_critic_and_not_one_bit_of_the_policy(
    tmp_path: Path, critic: str
) -> None:
    settings: dict[str, Any] = {"critic_warmup_rollouts": 1, "weight_decay": 0.1, "critic": critic}
    if critic == "adapter":
        settings["peft_config"] = LoraConfig(r=2, target_modules="all-linear")

    def moved(**more: Any) -> tuple[set[str], set[str]]:
        """Names of weights of critic and policy that a training moves."""
        trainer = tiny.trainer(tmp_path, **(settings | more))
        before = tiny.state(trainer.model)
        of_critic = {id(p) for p in trainer.model.critic_parameters()}
        of_policy = {
            n
            for n, p in trainer.model.named_parameters()
            if p.requires_grad and id(p) not in of_critic
        }
        trainer.train()
        names = {n for n, t in tiny.state(trainer.model).items() if not torch.equal(before[n], t)}
        return names - of_policy, names & of_policy

    critics, policies = moved(total_episodes=8)
    assert {"value_head.0.weight", "critic.score.weight"} & critics
    assert critic != "adapter" or any("lora_B.value" in name for name in critics)
    assert not policies
    assert moved()[1]  # one rollout more, which trains both
