"""A PPO run that was stopped and resumed equals, bit for bit, the run that never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer
from recipes.lib.runs.files import read_jsonl
from recipes.lib.trainers.progress import RunCallback

STEPS = 24  # 3 rollouts of 2 epochs of 4 mini-batches


class StopAt(TrainerCallback):
    """Saves and stops at a step, as a user does who presses Ctrl-C after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = True
            control.should_training_stop = True


def vowels(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Rewards every fifth token."""
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]


def evens(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Costs of even tokens."""
    return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]


def run(
    folder: Path, tokenizer: Any, stop: int | None = None, resume: str | None = None, **more: Any
) -> PPOTrainer:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=more.pop("tied", False),
        )
    )
    model.generation_config.eos_token_id = more.pop("ends", tokenizer.eos_token_id)
    lora = more.pop("lora", False)
    args = PPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        total_episodes=48,
        rollout_batch_size=16,
        num_ppo_epochs=2,
        num_mini_batches=4,
        per_device_train_batch_size=2,
        max_completion_length=6,
        learning_rate=1e-2,
        log_completions=True,
        **({"logging_steps": 3, "target_kl": 1.0, "normalize_rewards": True} | more),
    )
    words = "the cat sat on door".split()
    prompts = Dataset.from_list([{"prompt": " ".join(words[: 1 + i % 5])} for i in range(10)])
    trainer = PPOTrainer(
        model,
        vowels,
        args,
        prompts,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        cost_funcs=evens if "cost_limit" in more else None,
        callbacks=[RunCallback(folder)] + ([StopAt(stop)] if stop else []),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def metrics(folder: Path) -> list[dict[str, Any]]:
    timeless = []
    for row in read_jsonl(folder / "metrics.jsonl"):
        timeless.append({k: v for k, v in row.items() if k != "seconds" and "time/" not in k})
    return timeless


@pytest.mark.parametrize(
    ("stop", "more"),
    [
        # in the middle of a rollout, in its first pass, between two logs
        (5, {"critic": "head", "tied": True}),
        # behind the brake, before a mini-batch that alone would not put it on
        (6, {"critic": "model", "max_approx_kl": 0.13}),
        (13, {"critic": "model"}),  # in the second rollout, in its second pass
        (13, {"critic": "model", "cost_limit": 1.0}),
        (16, {"critic": "model"}),  # between two rollouts
        (13, {"critic": "head", "ends": [1, 8, 9, 10], "missing_eos_penalty": 1.0}),
        (19, {"critic": "head", "lora": True}),
        (21, {"critic": "model", "lora": True}),
    ],
)
def test_item_48_a_resumed_run_is_bit_equal_to_the_unbroken_one(
    tmp_path: Path, tiny_tokenizer: Any, stop: int, more: dict[str, Any]
) -> None:
    whole = run(tmp_path / "whole", tiny_tokenizer, **more)
    assert whole.state.global_step == STEPS
    broken = run(tmp_path / "broken", tiny_tokenizer, stop=stop, **more)
    assert broken.state.global_step == stop
    assert stop != 6 or broken.braked == 0  # the number of the rollout
    checkpoint = tmp_path / "broken" / f"checkpoint-{stop}"
    if stop == 16:  # earlier versions gave one of the kept metrics another name
        state = (checkpoint / "ppo_state.json").read_text()
        assert '"completions/mean_length"' in state
        old = state.replace("completions/mean_length", "objective/completion_length")
        (checkpoint / "ppo_state.json").write_text(old)
    resumed = run(tmp_path / "broken", tiny_tokenizer, resume=str(checkpoint), **more)
    assert resumed.state.global_step == STEPS
    expected, got = weights(whole), weights(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "broken")
    samples = [read_jsonl(tmp_path / name / "samples.jsonl") for name in ("whole", "broken")]
    assert samples[0] == samples[1] != []
    assert resumed.collector.kl.value == whole.collector.kl.value != whole.args.kl_coef
    assert resumed.collector.cost == whole.collector.cost
    assert ("cost_limit" in more) == (resumed.collector.cost.value > 0.0)
