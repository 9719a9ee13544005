"""The PPO trainer on tiny models: what moves, what stays, and what it notices."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from recipes.lib.errors import UserError
from recipes.lib.ppo.actor_critic import disable_dropout
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer
from tests.helpers import tiny

PROMPTS = ["the cat", "the dog sat", "a bird in the tree", "rain"]
LORA = LoraConfig(r=4, target_modules="all-linear")


def every_fifth(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]


def make(model: Any, tokenizer: Any, folder: Path, lora: bool = False, **more: Any) -> PPOTrainer:
    settings = {
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "total_episodes": 16,
        "rollout_batch_size": 8,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "per_device_train_batch_size": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
    }
    reward = more.pop("reward_funcs", every_fifth)
    rows = more.pop("rows", [{"prompt": prompt} for prompt in PROMPTS])
    return PPOTrainer(
        model,
        reward,
        PPOConfig(output_dir=str(folder), **(settings | more)),
        Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LORA if lora else None,
    )


def state(module: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("critic", ["head", "model"])
@pytest.mark.parametrize("lora", [False, True])
def test_item_32_policy_and_critic_move_and_nothing_frozen_does(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, critic: str, lora: bool
) -> None:
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, lora, critic=critic)
    module = trainer.model
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    before = state(module)
    reference = state(trainer.reference) if trainer.reference is not None else {}
    trainer.train()
    after = state(module)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    moved -= {"value_offset", "value_scale"}  # set once, by the first rollout
    tied = {"policy.lm_head.weight"}  # shares the embedding's storage in a tied model
    assert moved <= trained | tied
    assert any(name.startswith("policy.") for name in moved)
    assert any(not name.startswith("policy.") for name in moved)
    if lora:
        assert trainer.reference is None
        assert all("lora_" in name for name in moved if name.startswith("policy."))
    else:
        assert all(torch.equal(reference[n], t) for n, t in state(trainer.reference).items())


@pytest.mark.parametrize("lora", [False, True])
def test_item_03_before_the_first_update_kl_is_zero_and_values_the_mean_score(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, lora: bool
) -> None:
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, lora)
    rollout = trainer.collector.rollout(0)
    assert torch.equal(rollout.old_logps, rollout.ref_logps)
    assert trainer.collector.metrics["objective/kl"] == 0.0
    mean = trainer.collector.metrics["objective/scores"]
    assert torch.allclose(rollout.old_values, mean * rollout.completion_mask, atol=1e-6)
    assert not any(t.requires_grad for t in vars(rollout).values())


def test_item_09_the_first_mini_batch_of_every_rollout_has_ratio_one(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, logging_steps=1, total_episodes=24)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "val/ratio" in row]
    first = [row for row in logs if row["step"] % trainer.args.steps_per_rollout == 1]
    others = [row for row in logs if row["step"] % trainer.args.steps_per_rollout != 1]
    assert len(first) == 3
    for row in first:
        assert row["val/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert row["policy/clipfrac_avg"] == 0.0
        assert row["policy/approxkl_avg"] < 1e-9
    assert any(row["policy/approxkl_avg"] > 1e-6 for row in others)


def test_item_09_a_policy_that_moved_before_training_is_noticed(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    trainer = make(tiny_model, tiny_tokenizer, tmp_path)
    make_rollout = trainer.stream.make_rollout

    def meddle(number: int) -> Any:
        rollout = make_rollout(number)
        with torch.no_grad():
            for parameter in trainer.actor_critic.policy.parameters():
                parameter.mul_(1.05)
        return rollout

    trainer.stream.make_rollout = meddle
    with pytest.raises(RuntimeError, match="first mini-batch of rollout 0 has a log ratio"):
        trainer.train()


def test_item_34_any_micro_batch_gives_the_same_updates(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    weights = []
    for size in (4, 2, 1):
        trainer = make(
            copy.deepcopy(tiny_model),
            tiny_tokenizer,
            tmp_path,
            per_device_train_batch_size=size,
            learning_rate=1e-3,
        )
        assert trainer.args.gradient_accumulation_steps == 4 // size
        trainer.train()
        assert trainer.state.global_step == 8
        weights.append(state(trainer.model))
    for name, weight in weights[0].items():
        for other in weights[1:]:
            # fp32 sums in another order, through eight Adam steps of size 1e-3
            assert torch.allclose(weight, other[name], atol=2e-5), name


def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    runs = []
    for seed in (3, 3, 4):
        trainer = make(copy.deepcopy(tiny_model), tiny_tokenizer, tmp_path, seed=seed)
        trainer.train()
        runs.append(state(trainer.model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_item_24_reward_clip_and_normalisation_act_on_scores(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, reward_clip=1.0, normalize_rewards=True)
    episode = type(trainer.collector.sample(trainer.collector.prompts, [0], None)[0])
    scores = [4.0, -4.0, 0.0, 1.0]
    episodes = [episode(0, [7], [7], score=s) for s in scores]
    # mean 0.25, variance (16 + 16 + 0 + 1) / 4 - 0.0625 = 8.1875
    expected = [max(-1.0, min(1.0, s / 8.1875**0.5)) for s in scores]
    assert trainer.collector.penalised(episodes).tolist() == pytest.approx(expected, rel=1e-6)


def test_item_12_attention_dropout_is_switched_off_too(tiny_model: Any) -> None:
    for module in tiny_model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    ids = torch.randint(6, 20, (2, 9))
    tiny_model.train()
    torch.manual_seed(0)
    assert not torch.equal(tiny_model(ids).logits, tiny_model(ids).logits)
    disable_dropout(tiny_model)
    assert tiny_model.training
    assert torch.equal(tiny_model(ids).logits, tiny_model(ids).logits)


@pytest.mark.parametrize("lora", [False, True])
def test_item_12_activation_checkpointing_leaves_the_updates_as_they_are(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, lora: bool
) -> None:
    weights = []
    for checkpointing in (False, True):
        trainer = make(
            copy.deepcopy(tiny_model),
            tiny_tokenizer,
            tmp_path,
            lora,
            gradient_checkpointing=checkpointing,
        )
        trainer.train()
        policy = trainer.actor_critic.policy
        assert policy.is_gradient_checkpointing is checkpointing
        weights.append(state(trainer.model))
    assert all(torch.allclose(weights[0][n], weights[1][n], atol=1e-6) for n in weights[0])


def test_further_columns_reach_the_reward_function(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    seen: list[tuple[str, str]] = []

    def reward(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> Any:
        assert all(isinstance(text, str) for text in completions)
        seen.extend(zip(prompts, answer, strict=True))
        return [0.0] * len(prompts)

    rows = [{"prompt": prompt, "answer": prompt.upper()} for prompt in PROMPTS]
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, reward_funcs=reward, rows=rows)
    trainer.collector.rollout(0)
    assert len(seen) == 8
    assert all(answer == prompt.upper() for prompt, answer in seen)
    assert {prompt for prompt, _ in seen} == set(PROMPTS)  # two passes over four prompts


def test_messages_come_to_the_reward_as_messages(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        seen.extend(completions)
        return [0.0] * len(prompts)

    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, reward_funcs=reward, rows=rows)
    trainer.collector.rollout(0)
    assert all(c[0]["role"] == "assistant" and len(c) == 1 for c in seen)


def test_evaluation_scores_held_out_prompts_without_touching_the_run(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    trainer = make(tiny_model, tiny_tokenizer, tmp_path)
    held_out = Dataset.from_list([{"prompt": "the moon"}, {"prompt": "the old house"}])
    before = state(trainer.model)
    first, second = trainer.evaluate(held_out), trainer.evaluate(held_out)
    assert first == second
    assert first["eval_kl"] == 0.0
    assert 1 <= first["eval_completions/mean_length"] <= 6
    assert all(torch.equal(before[n], t) for n, t in state(trainer.model).items())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_prompt_length", 2, r"_length=2: the prompt of row 1 \(counted from 0\) has 3"),
        ("reward_weights", [1.0, 2.0], "has 2 entries for 1 reward_funcs"),
        ("stop_token", "<nothing>", "stop_token='<nothing>' is not in the vocabulary"),
        ("per_device_train_batch_size", 3, "does not divide the 4 episodes"),
        ("total_episodes", 17, "is no multiple of rollout_batch_size=8"),
        ("gradient_accumulation_steps", 3, "leave it out"),
        ("kl_estimator", "k3", "biases the gradient"),
        ("temperature", 0.0, "must be above 0"),
        ("target_kl", 0.0, "must be above 0"),
        ("reward_clip", -1.0, "must be above 0"),
        ("max_steps", 5, "does not set the length of a PPO run; leave it out"),
        ("num_train_epochs", 2.0, "does not set the length of a PPO run; leave it out"),
        ("lam", 1.5, "must be from 0 to 1"),
        ("kl_coef", -0.1, "must be 0 or more"),
        ("num_ppo_epochs", 0, "must be 1 or more"),
        ("critic_model_name_or_path", "x", "needs critic=model"),
    ],
)
def test_what_cannot_work_is_refused_with_key_and_remedy(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    more = {"critic": "head"} if key == "critic_model_name_or_path" else {}
    with pytest.raises(UserError, match=message):
        make(tiny_model, tiny_tokenizer, tmp_path, **{key: value}, **more)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.0], "returned 1 values for 8 completions"),
        ("no list", "returned 'no list' for 8 completions"),
        ([float("nan")] * 8, r"returned nan for row \d of the batch"),
        ([0.0] * 7 + [float("inf")], r"returned inf for row \d of the batch"),
        (["1.0"] * 8, r"returned '1.0' for row \d of the batch"),
        ([None] * 8, r"every reward function returned None for row \d of the batch"),
    ],
)
def test_a_reward_function_that_says_nonsense_stops_the_run(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, returned: Any, message: str
) -> None:
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, reward_funcs=lambda **_: returned)
    with pytest.raises(UserError, match=message):
        trainer.train()


def test_none_is_left_out_of_the_weighted_sum(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def one(prompts: list[str], **_: Any) -> list[float | None]:
        return [None, *[1.0] * (len(prompts) - 1)]

    async def two(prompts: list[str], **_: Any) -> list[float]:
        return [10.0] * len(prompts)

    trainer = make(
        tiny_model,
        tiny_tokenizer,
        tmp_path,
        reward_funcs=[one, two],
        reward_weights=[1.0, 0.5],
    )
    trainer.collector.rollout(0)
    # seven rows of 1 + 5, one of 5 alone
    assert trainer.collector.metrics["objective/scores"] == pytest.approx((7 * 6 + 5) / 8)
    assert trainer.collector.metrics["rewards/one"] == 1.0


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizers_are_those_of_bitsandbytes_and_train(
    tiny_tokenizer: Any, tmp_path: Path, optim: str
) -> None:
    model = tiny.llama(vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=64)
    trainer = make(model, tiny_tokenizer, tmp_path, optim=optim, critic="head")
    before = state(trainer.actor_critic.policy)
    trainer.train()
    after = state(trainer.actor_critic.policy)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    kept = [s["state1"] for s in trainer.optimizer.state.values() if "state1" in s]
    # matrices of 4,096 numbers and more are kept in 8 bits
    assert {tensor.dtype for tensor in kept if tensor.numel() >= 4096} == {torch.uint8}
