"""Short runs of every recipe that are stopped somewhere, and what makes two of them the same."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recipes import dpo, grpo, kto, ppo, reward, rloo, sft
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl
from recipes.lib.trainers import progress
from tests.helpers.tiny_runs import FAST, write

RECIPES = {"sft": sft, "reward": reward, "dpo": dpo, "kto": kto, "ppo": ppo}
RECIPES |= {"rloo": rloo, "grpo": grpo}
SAMPLING = ("ppo", "rloo", "grpo")
PAIRS = [
    {"prompt": f"the {subject}", "chosen": f" {verb} happy .", "rejected": f" {verb} sad today ."}
    for subject in ("cat", "dog", "bird", "child", "sun", "moon", "rain", "tree")
    for verb in ("was", "sat", "ran", "is")
]
# Between two logs; accumulation; random numbers in every step; in a later pass over the rows.
COMMON = FAST | {
    "logging_steps": 3,
    "max_steps": 10,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "test_fraction": 0.25,
    "eval_strategy": "steps",
    "eval_steps": 4,
}
ROLLOUTS = {
    "total_episodes": 40,
    "rollout_batch_size": 8,
    "num_mini_batches": 2,
    "num_ppo_epochs": 1,
    "per_device_train_batch_size": 2,
    "max_completion_length": 6,
    "target_kl": 1.0,
    "normalize_rewards": True,
    "log_completions": True,
}
GENERATIONS = {
    "num_generations": 4,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "per_device_train_batch_size": 4,
    "max_steps": 26,
    "beta": 0.1,
    "log_completions": True,
    "eval_strategy": "no",
}
REWARD = """
def ends(completion_ids, **_):
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]
"""


def furnish(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A model, rows for every recipe and a reward."""
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    write(folder / "pairs.jsonl", PAIRS)
    sides = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    write(folder / "sft.jsonl", sides)
    write(folder / "ppo.jsonl", [{"prompt": row["prompt"]} for row in PAIRS])
    (folder / "rewards.py").write_text(REWARD)
    return folder


def train(recipe: str, folder: Path, name: str, **more: Any) -> None:
    """Run a recipe."""
    data = {"sft": "sft"}.get(recipe, "ppo" if recipe in SAMPLING else "pairs")
    values = COMMON | {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / f"{data}.jsonl"),
        "output_dir": str(folder / name),
    }
    if recipe in SAMPLING:
        values |= {"reward_funcs": [f"{folder / 'rewards.py'}:ends"], "max_completion_length": 6}
    if recipe in ("rloo", "grpo"):  # two generations in a pass over the prompts
        values |= GENERATIONS
    if recipe == "ppo":
        values |= ROLLOUTS
        del values["gradient_accumulation_steps"], values["max_steps"]  # they follow
    RECIPES[recipe].run(parse(recipe, [], values | more))


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, event: str, number: int) -> None:
    """Send this process a signal, once, at an event after so many steps."""
    sent: list[int] = []

    class Killing(progress.RunCallback):
        def _send(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step and not sent:
                sent.append(number)
                os.kill(os.getpid(), number)

    setattr(Killing, event, Killing._send)
    monkeypatch.setattr(progress, "RunCallback", Killing)


def watch_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the runs to come: after how many steps each further one began."""
    begun: list[int] = []

    class Watching(progress.RunCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            begun.append(state.global_step)

    monkeypatch.setattr(progress, "RunCallback", Watching)
    return begun


def rows(path: Path) -> list[dict[str, Any]]:
    """What was logged, without times."""
    timeless = []
    for row in read_jsonl(path):
        kept = {k: v for k, v in row.items() if k != "seconds" and "time/" not in k}
        times = ("runtime", "_second", "step_time")
        timeless.append({k: v for k, v in kept.items() if not k.endswith(times)})
    return timeless


def assert_same_runs(one: Path, other: Path) -> None:
    """Weights, metrics, samples and the summary are equal to the bit; times cover the whole run."""
    expected = next(one.glob("final/*.safetensors"))
    got = load_file(other / "final" / expected.name)
    assert all(torch.equal(got[n], w) for n, w in load_file(expected).items())
    assert rows(one / "metrics.jsonl") == rows(other / "metrics.jsonl") != []
    if (one / "samples.jsonl").exists():
        assert read_jsonl(one / "samples.jsonl") == read_jsonl(other / "samples.jsonl")
    whole, again = (json.loads((run / "summary.json").read_text()) for run in (one, other))
    assert {**whole, "seconds": 0} == {**again, "seconds": 0}
    for run, summary in ((one, whole), (other, again)):
        seconds = [row["seconds"] for row in read_jsonl(run / "metrics.jsonl")]
        assert seconds == sorted(seconds)
        assert summary["seconds"] >= seconds[-1] - 0.1
