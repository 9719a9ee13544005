"""Two real processes under DDP make the steps of one: losses, gradients, metrics, episodes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recipes.lib.arguments import parse
from recipes.lib.runs import read_jsonl
from tests.conftest import WORDS, word_tokenizer
from tests.tiny_models import save_model
from tests.tiny_runs import LORA, flags, write

ROOT = Path(__file__).parents[2]
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

def fifth(prompts, completion_ids, **_):
    with Path("seen" + os.environ.get("RANK", "") + ".jsonl").open("a") as file:
        for pair in zip(prompts, completion_ids):
            file.write(json.dumps(pair) + "\\n")
    return [sum(t % 5 == 0 for t in ids) / 3 for ids in completion_ids]
"""
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
    "ppo_head": STEPS | ROLLOUTS | {"critic": "head", "reward_funcs": "rewards.py:fifth"},
    "ppo_model": STEPS | ROLLOUTS | {"critic": "model", "reward_funcs": "rewards.py:fifth"},
    # policy, reference, reward and critic on one base
    "ppo_adapter": STEPS
    | ROLLOUTS
    | LORA
    | {"critic": "adapter", "reward_funcs": "reward", "critic_model_name_or_path": "reward"},
}
PPO = [name for name in RUNS if name.startswith("ppo")]
# TRL's means over micro-batches of what is not a mean over tokens or rows.
GROUPED = {"entropy", "min_reward", "max_reward", "logits/chosen", "logits/rejected"}
TIMES = ("time/", "seconds", "_per_second", "runtime")


def fill(folder: Path) -> None:
    folder.mkdir()
    save_model(folder / "model", word_tokenizer(), initializer_range=0.3)
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
    (folder / "rewards.py").write_text(REWARDS)
    words = [[n.partition("_")[0], *flags(v | {"output_dir": n})] for n, v in RUNS.items()]
    (folder / "runs.json").write_text(json.dumps(words))


def on_two(folder: Path) -> subprocess.CompletedProcess[str]:
    config = str(ROOT / "configs/accelerate/cpu.yaml")
    start = ["accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    start += ["--tee", "3", "--log_dir", "logs", str(WORKER), "runs.json", "notes"]
    return subprocess.run(
        [sys.executable, "-m", *start],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same runs, made by one process and by two."""
    import importlib

    one, two = (tmp_path_factory.mktemp("on") / name for name in ("one", "two"))
    for folder in (one, two):
        fill(folder)
    done = on_two(two)
    assert done.returncode == 0, done.stderr[-3000:]
    with inside(one):
        for recipe, *words in json.loads(Path("runs.json").read_text()):
            importlib.import_module(f"recipes.{recipe}").run(parse(recipe, words))
    return one, two


def notes(folder: Path, rank: int) -> list[dict[str, Any]]:
    return json.loads((folder / f"notes{rank}.json").read_text())


def test_there_are_two_processes_and_the_model_is_under_ddp(folders: tuple[Path, Path]) -> None:
    for rank in (0, 1):
        seen = notes(folders[1], rank)
        assert {note["run"] for note in seen} == set(RUNS)
        assert {note["processes"] for note in seen} == {2}
        assert {note["wrapped"] for note in seen} == {"DistributedDataParallel"}
        # the global batch of 8 is 2 accumulations of 2 rows on each of 2 processes
        assert {note["accumulation"] for note in seen} == {2}


@pytest.mark.parametrize("name", RUNS)
def test_the_weights_are_those_of_one_process(name: str, folders: tuple[Path, Path]) -> None:
    of_one, of_two = (weights(folder / name / "final") for folder in folders)
    start = weights(folders[0] / "model")
    assert of_one.keys() == of_two.keys()
    moved = [not torch.equal(tensor, start[key]) for key, tensor in of_one.items() if key in start]
    assert all(moved)
    for key, tensor in of_one.items():
        assert torch.allclose(tensor, of_two[key], rtol=1e-5, atol=1e-6), key


@pytest.mark.parametrize("name", RUNS)
def test_what_is_logged_is_that_of_one_process(name: str, folders: tuple[Path, Path]) -> None:
    of_one, of_two = (read_jsonl(folder / name / "metrics.jsonl") for folder in folders)
    assert len(of_one) == len(of_two) >= 3
    for one, two in zip(of_one, of_two, strict=True):
        assert one.keys() == two.keys()
        for key in (key for key in one.keys() - GROUPED if not any(w in key for w in TIMES)):
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), key


def test_summaries_and_samples_are_those_of_one_process(folders: tuple[Path, Path]) -> None:
    one, two = folders
    for name in RUNS:
        of_one, of_two = (json.loads((f / name / "summary.json").read_text()) for f in folders)
        for key in of_one.keys() - {"seconds", "warnings", "recipe"}:
            assert of_two[key] == pytest.approx(of_one[key], rel=1e-4, abs=1e-5), (name, key)
    for name in ("sft", *PPO):
        rows = [read_jsonl(folder / name / "samples.jsonl") for folder in (one, two)]
        assert len(rows[0]) == len(rows[1]) > 0
        assert [row["completion"] for row in rows[0]] == [row["completion"] for row in rows[1]]


def test_episodes_are_dealt_out_without_loss_or_repeat(folders: tuple[Path, Path]) -> None:
    one = read_jsonl(folders[0] / "seen.jsonl")
    shares = [read_jsonl(folders[1] / f"seen{rank}.jsonl") for rank in (0, 1)]
    # Of each rollout of 8 the first process has the first half. Behind the second and the third
    # one prompt is evaluated twice, by the first process alone; the other has none and goes on.
    dealt = []
    at = [0, 0]
    for number in range(2 * 3):  # two runs of three rollouts
        for rank in (0, 1):
            dealt += shares[rank][at[rank] : at[rank] + 4]
            at[rank] += 4
        if number % 3:
            dealt += shares[0][at[0] : at[0] + 2]
            at[0] += 2
    assert dealt == one
    assert at == [len(share) for share in shares]


def test_only_the_main_process_writes_and_prints(folders: tuple[Path, Path]) -> None:
    one, two = folders
    for name in RUNS:
        there = [sorted(p.name for p in (f / name).rglob("*")) for f in (one, two)]
        assert there[0] == there[1]
    logs = {path.parent.name + path.name: path for path in (two / "logs").rglob("*.log")}
    assert [logs[f"1{stream}.log"].read_text() for stream in ("stdout",)] == [""]
    said = logs["1stderr.log"].read_text().splitlines()
    of_torch = ("[rank1]:[W", "[W", "[Gloo]")  # warnings of its C++ part
    assert [line for line in said if line.strip() and not line.startswith(of_torch)] == []
    assert logs["0stderr.log"].read_text().strip()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        key: tensor
        for path in folder.glob("*.safetensors")
        for key, tensor in load_file(path).items()
    }
