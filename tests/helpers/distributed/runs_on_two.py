"""What tests of recipes on two processes share: the runs, their data, how they are started."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recipes.lib.recipe.main import parse
from recipes.lib.trainers import progress
from tests.conftest import WORDS, word_tokenizer
from tests.helpers.distributed.row_noise import with_row_noise
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import LORA, flags, write

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).parent / "recipes_worker.py"
NOUNS = WORDS[1:17]
# Plain gradient descent at rate 0.1: weights equal to 1e-6 say that gradients were to 1e-5.
STEPS = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}
BATCHES = {"per_device_train_batch_size": 2, "global_batch_size": 8, "max_steps": 3}
ROLLOUTS = {
    "total_episodes": 24,
    "rollout_batch_size": 8,
    "num_ppo_epochs": 1,
    "num_mini_batches": 1,
    "per_device_train_batch_size": 2,
    "max_completion_length": 5,
    "learning_rate": 0.02,
    "critic_learning_rate": 0.02,
    "target_kl": 0.1,
    "whiten_rewards": True,
    "normalize_rewards": True,
    "log_completions": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "test_dataset_name": "one_of_prompts.jsonl",  # one prompt for two processes
    "dataset_name": "prompts.jsonl",
}
REWARDS = """
import json, os
from pathlib import Path

def fives(completion_ids, **_):
    return [sum(t % 5 == 0 for t in ids) / 3 for ids in completion_ids]

def fifth(prompts, completion_ids, name="seen", **_):
    with Path(name + os.environ.get("RANK", "") + ".jsonl").open("a") as file:
        for pair in zip(prompts, completion_ids):
            file.write(json.dumps(pair) + "\\n")
    return fives(completion_ids)

def grouped(prompts, completion_ids, **_):
    return fifth(prompts, completion_ids, "grouped")
"""
GROUPS = {
    "model_name_or_path": "brief",
    "max_completion_length": 8,
    "beta": 0.1,
    "log_completions": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "num_generations_eval": 4,
    "per_device_eval_batch_size": 2,
    "dataset_name": "prompts.jsonl",
    "test_dataset_name": "one_of_prompts.jsonl",
}
RUNS: dict[str, dict[str, Any]] = {
    "sft": STEPS
    | BATCHES
    | {
        "dataset_name": "sft.jsonl",
        "test_dataset_name": "one_of_sft.jsonl",
        "max_new_tokens": 8,
    },
    "reward": STEPS
    | BATCHES
    | LORA
    | {"dataset_name": "pairs.jsonl", "test_dataset_name": "one_of_pairs.jsonl"},
    "dpo": STEPS | BATCHES | {"dataset_name": "pairs.jsonl", "beta": 1.0},
    "kto": STEPS
    | BATCHES
    | LORA
    | {"dataset_name": "liked.jsonl", "test_dataset_name": "one_of_pairs.jsonl", "beta": 1.0},
    "kto_apo": STEPS
    | BATCHES
    | {"dataset_name": "liked.jsonl", "beta": 1.0, "loss_type": "apo_zero_unpaired"},
    # the completions of one generation serve the whole run, so a checkpoint has them in hand
    "rloo": STEPS
    | BATCHES
    | GROUPS
    | LORA
    | {
        "lora_dropout": 0.0,
        "num_generations": 4,
        "num_iterations": 3,
        "reward_funcs": "rewards.py:fives",
    },
    # a group is spread over both processes
    "grpo": STEPS
    | BATCHES
    | GROUPS
    | {"num_generations": 8, "num_iterations": 2, "reward_funcs": "rewards.py:grouped"},
    "ppo_head": STEPS | ROLLOUTS | {"critic": "head", "reward_funcs": "rewards.py:fifth"},
    "ppo_model": STEPS | ROLLOUTS | {"critic": "model", "reward_funcs": "rewards.py:fifth"},
    # policy, reference, reward and critic on one base
    "ppo_adapter": STEPS
    | ROLLOUTS
    | LORA
    | {"critic": "adapter", "reward_funcs": "reward", "critic_model_name_or_path": "reward"},
}
# These are stopped behind their second step and go on, as runs of their own.
RESUMED = {"sft": "sft_resumed", "rloo": "rloo_resumed", "ppo_adapter": "ppo_resumed"}
for _name in RESUMED:
    RUNS[_name] |= {"save_strategy": "steps", "save_steps": 2}
# What one process needs to handle at once the rows that two do.
ALONE = {
    "kto": {"per_device_train_batch_size": 4},
    "rloo": {"per_device_eval_batch_size": 4},
    "grpo": {"per_device_eval_batch_size": 4},
}


def fill(folder: Path, use_cpu: bool = True) -> None:
    folder.mkdir()
    save_model(folder / "model", word_tokenizer(), initializer_range=0.3)
    shutil.copytree(folder / "model", folder / "brief")
    # a third of the words end a completion, so that processes are done at different times
    ends = {"eos_token_id": list(range(1, len(WORDS), 3)), "pad_token_id": 0}
    (folder / "brief/generation_config.json").write_text(json.dumps(ends))
    texts = [(noun, word) for noun in NOUNS for word in ("old", "new", "warm", "happy today")]
    rows = [{"prompt": f"the {n}", "completion": f" {n} is {w}"} for n, w in texts]
    pairs = [
        {"prompt": f"the {n}", "chosen": f" {n} is {w}", "rejected": f" {n} was sad"}
        for n, w in texts
    ]
    prompts = [{"prompt": f"the {n}" if i % 2 else f"{n} is the"} for i, n in enumerate(NOUNS)]
    for name, all_rows in (("sft", rows), ("pairs", pairs), ("prompts", prompts)):
        write(folder / f"{name}.jsonl", all_rows[1:])
        write(folder / f"one_of_{name}.jsonl", all_rows[:1])
    # KTO with one completion everywhere: that it pairs rows of a micro-batch makes no difference
    liked = [
        {"prompt": f"the {n} {w}", "completion": " is warm", "label": (i + i // 4) % 2 > 0}
        for i, (n, w) in enumerate((n, w) for n in NOUNS for w in ("old", "new", "red", "sad"))
    ]
    write(folder / "liked.jsonl", liked)
    (folder / "rewards.py").write_text(REWARDS)
    words = [words_of(name, use_cpu) for name in RUNS]
    for name, copy in RESUMED.items():
        words += [["cut", name, copy], [*words_of(name, use_cpu, copy), "--resume"]]
    (folder / "runs.json").write_text(json.dumps(words))


def words_of(name: str, use_cpu: bool, output_dir: str | None = None, **more: Any) -> list[str]:
    """A recipe and its flags; the shim makes the CPU a card, so there use_cpu is false."""
    values = RUNS[name] | {"output_dir": output_dir or name, "use_cpu": use_cpu} | more
    return [name.partition("_")[0], *flags(values)]


def on_two(
    folder: Path, config: str, runs: str = "runs", num_processes: int = 2
) -> subprocess.CompletedProcess[str]:
    path, notes = str(ROOT / f"configs/accelerate/{config}.yaml"), runs.replace("runs", "notes")
    start = ["accelerate.commands.launch", "--config_file", path]
    start += ["--num_processes", str(num_processes), "--tee", "3", "--log_dir", f"logs_{runs}"]
    start += [str(WORKER), f"{runs}.json", notes]
    return subprocess.run(
        [sys.executable, "-m", *start],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def needs_deepspeed(kind: str) -> None:
    if kind.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")


def search_path() -> str:
    """The project before whatever else was named."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Here one process runs recipes, with the noise of the two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(progress, "add_run_callbacks", with_row_noise(progress.add_run_callbacks))
        yield


def make(words: list[str]) -> None:
    recipe, *rest = words
    importlib.import_module(f"recipes.{recipe}").run(parse(recipe, rest))


def notes(folder: Path, rank: int) -> list[dict[str, Any]]:
    return json.loads((folder / f"notes{rank}.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        key: tensor
        for path in folder.glob("*.safetensors")
        for key, tensor in load_file(path).items()
    }
