"""Two real processes make the steps of one: losses, gradients, metrics, episodes, checkpoints.

Under DDP, which is what a user without a card gets, and under FSDP2, which accelerate runs over
gloo through a shim of the tests alone (gloo_shim.py).
"""

import importlib
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
from recipes.lib.errors import UserError
from recipes.lib.runs import read_jsonl
from tests.conftest import WORDS, word_tokenizer
from tests.distributed.recipes_worker import cut
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
# These are stopped behind their second step and go on, as runs of their own.
RESUMED = {"sft": "sft_resumed", "ppo_adapter": "ppo_resumed"}
for _name in RESUMED:
    RUNS[_name] |= {"save_strategy": "steps", "save_steps": 2}
KINDS = {
    "ddp": ("cpu", "MULTI_CPU", "DistributedDataParallel", "DistributedDataParallel", "Parameter"),
    "fsdp2": ("fsdp2", "FSDP", "FSDPLlamaForCausalLM", "FSDPActorCritic", "DTensor"),
}
PPO = [name for name in RUNS if name.startswith("ppo")]
# TRL's means over micro-batches of what is not a mean over tokens or rows.
GROUPED = {"entropy", "min_reward", "max_reward", "logits/chosen", "logits/rejected"}
TIMES = ("time/", "seconds", "_per_second", "runtime")


def fill(folder: Path, use_cpu: bool = True) -> None:
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
    words = [words_of(name, use_cpu) for name in RUNS]
    for name, copy in RESUMED.items():
        words += [["cut", name, copy], [*words_of(name, use_cpu, copy), "--resume"]]
    (folder / "runs.json").write_text(json.dumps(words))


def words_of(name: str, use_cpu: bool, output_dir: str | None = None) -> list[str]:
    """A recipe and its flags; the shim makes the CPU a card, so there use_cpu is false."""
    values = RUNS[name] | {"output_dir": output_dir or name, "use_cpu": use_cpu}
    return [name.partition("_")[0], *flags(values)]


def on_two(folder: Path, config: str) -> subprocess.CompletedProcess[str]:
    path = str(ROOT / f"configs/accelerate/{config}.yaml")
    start = ["accelerate.commands.launch", "--config_file", path, "--num_processes", "2"]
    start += ["--tee", "3", "--log_dir", "logs", str(WORKER), "runs.json", "notes"]
    return subprocess.run(
        [sys.executable, "-m", *start],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def search_path() -> str:
    """The project before whatever else was named."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    folder = tmp_path_factory.mktemp("on") / "one"
    fill(folder)
    with inside(folder):
        for name in RUNS:
            make(words_of(name, use_cpu=True))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folders(
    request: pytest.FixtureRequest, one: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The same runs, made by one process and by two."""
    two = tmp_path_factory.mktemp("on") / request.param
    fill(two, use_cpu=request.param == "ddp")
    done = on_two(two, KINDS[request.param][0])
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


def make(words: list[str]) -> None:
    recipe, *rest = words
    importlib.import_module(f"recipes.{recipe}").run(parse(recipe, rest))


def notes(folder: Path, rank: int) -> list[dict[str, Any]]:
    return json.loads((folder / f"notes{rank}.json").read_text())


def test_there_are_two_processes_and_the_model_is_wrapped(folders: tuple[Path, Path]) -> None:
    _, kind, wrapped, wrapped_ppo, parameters = KINDS[folders[1].name]
    for rank in (0, 1):
        seen = notes(folders[1], rank)
        assert {note["run"] for note in seen} == {*RUNS, *RESUMED.values()}
        assert {note["processes"] for note in seen} == {2}
        assert {note["kind"] for note in seen} == {kind}
        assert {tuple(note["kinds"]) for note in seen} == {(parameters,)}
        # the global batch of 8 is 2 accumulations of 2 rows on each of 2 processes
        assert {note["accumulation"] for note in seen} == {2}
        of_ppo = {note["wrapped"] for note in seen if note["run"].startswith("ppo")}
        others = {note["wrapped"] for note in seen if note["run"] in {"sft", "dpo"}}
        assert (of_ppo, others) == ({wrapped_ppo}, {wrapped})


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
    for name in RUNS.keys() - RESUMED.keys():
        there = [sorted(p.name for p in (f / name).rglob("*")) for f in (one, two)]
        assert there[0] == there[1]
    logs = {path.parent.name + path.name: path for path in (two / "logs").rglob("*.log")}
    assert [logs[f"1{stream}.log"].read_text() for stream in ("stdout",)] == [""]
    said = logs["1stderr.log"].read_text().splitlines()
    of_torch = ("[rank1]:[W", "[W", "[Gloo]")  # warnings of its C++ part
    assert [line for line in said if line.strip() and not line.startswith(of_torch)] == []
    assert logs["0stderr.log"].read_text().strip()


def test_a_checkpoint_of_two_resumes_with_two_to_the_bit(folders: tuple[Path, Path]) -> None:
    two = folders[1]
    for name, copy in RESUMED.items():
        steps = [note["step"] for note in notes(two, 1) if note["run"] == copy]
        assert steps == [3]
        whole, resumed = weights(two / name / "final"), weights(two / copy / "final")
        assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
        rows, again = (read_jsonl(two / n / "metrics.jsonl") for n in (name, copy))
        assert timeless(rows) == timeless(again)


def test_one_process_resumes_what_two_began_or_refuses_it(folders: tuple[Path, Path]) -> None:
    two = folders[1]
    kind = two.name
    for name in RESUMED:
        known = json.loads((two / name / "checkpoint-2/manifest.json").read_text())
        assert known["launch"] == {"kind": kind, "num_processes": 2}
        words = [*words_of(name, kind == "ddp", f"{name}_alone"), "--resume"]
        with inside(two):
            cut(Path(name), Path(f"{name}_alone"))
            if kind == "fsdp2":
                with pytest.raises(UserError, match="is of fsdp2 with 2 processes, not single"):
                    make(words)
                continue
            make(words)
        alone, expected = weights(two / f"{name}_alone/final"), weights(two / name / "final")
        assert all(torch.allclose(alone[key], t, atol=1e-6) for key, t in expected.items())


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not any(w in k for w in TIMES)} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        key: tensor
        for path in folder.glob("*.safetensors")
        for key, tensor in load_file(path).items()
    }
