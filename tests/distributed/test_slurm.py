"""scripts/slurm/train.sbatch on two nodes: preempted, queued again, resumed; cancelled; warned."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.runs.checkpoints import list_checkpoints, read_manifest
from recipes.lib.runs.files import read_jsonl
from tests.helpers.slurm_cluster import NODES, ask, cluster, is_installed
from tests.helpers.tiny_runs import flags, write

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/slurm/train.sbatch"
COMMAND = f"'{sys.executable}' -m recipes.cli"
# Waits in the second rollout of a first attempt, so that the warning comes in the middle of it.
REWARD = """
import os, time
from pathlib import Path
HERE = Path(__file__).parent
calls = []

def ends(completion_ids, **_):
    calls.append(1)
    if len(calls) == 2 and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        (HERE / ("waits_on_" + os.environ["SLURMD_NODENAME"])).touch()
        while not (HERE / "warned").exists():
            time.sleep(0.05)
        time.sleep(1.0)
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]
"""
PPO = {
    "total_episodes": 32,
    "rollout_batch_size": 8,
    "num_ppo_epochs": 1,
    "per_device_train_batch_size": 4,
    "max_completion_length": 6,
    "save_strategy": "steps",
    "save_steps": 100,  # none but the one that the warning asks for
    "dataset_name": "rows.jsonl",
    "reward_funcs": "rewards.py:ends",
    "learning_rate": 1e-2,
}
# Stands for a training: `trains` saves when it is warned, `loads` cannot yet, `waits` for SIGTERM.
COMMAND_THAT_WAITS = """#!/usr/bin/env bash
case $1 in
  trains) trap 'sleep 0.5; exit 75' USR1 TERM ;;
  waits) trap : USR1; trap 'sleep 0.5; exit 75' TERM ;;
esac
[ "$1" = loads ] || [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
touch "up_${SLURM_RESTART_COUNT:-0}_$SLURM_NODEID"
for ((i = 0; i < 2000; i++)); do sleep 0.1; done
"""

pytestmark = pytest.mark.skipif(not is_installed(), reason="slurm-wlm is not installed")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def submit(environment: dict[str, str], folder: Path, *words: str, options: str = "") -> str:
    where = ["--nodes", "2", "--chdir", str(folder), "--output", str(folder / "job.log")]
    words = (*where, *options.split(), str(SCRIPT), *words)
    said = ask(environment, "sbatch", "--parsable", *words)
    assert said.isdigit(), said
    return said


def wait_for(folder: Path, environment: dict[str, str], what: str, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not list(folder.glob(what)):
        assert time.monotonic() < end, ask(environment, "squeue") + log_of(folder)
        time.sleep(0.1)


def wait_for_end(environment: dict[str, str], job: str, seconds: float = 300.0) -> str:
    """Wait until a job has left the queue, and return what Slurm knows of it."""
    end = time.monotonic() + seconds
    while True:
        said = ask(environment, "scontrol", "show", "--oneliner", "job", job)
        if not any(f"JobState={s} " in said for s in ("PENDING", "RUNNING", "COMPLETING")):
            return said
        assert time.monotonic() < end, said
        time.sleep(0.1)


def preempt(environment: dict[str, str], folder: Path, job: str) -> None:
    """Submit a job that goes before, and wait until Slurm has warned the one that is there."""
    where = ["--nodes", "2", "--chdir", str(folder), "--output", "urgent.log"]
    said = ask(environment, "sbatch", "--partition", "urgent", *where, "--wrap", "echo done")
    assert said.startswith("Submitted"), said
    while "PreemptTime=None" in ask(environment, "scontrol", "show", "job", job):
        time.sleep(0.1)


def log_of(folder: Path) -> str:
    log = folder / "job.log"
    return log.read_text() if log.exists() else ""


def stand_in(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """An environment whose command only waits."""
    (folder / "waiting").write_text(COMMAND_THAT_WAITS)
    (folder / "waiting").chmod(0o755)
    return environment | {"RLHF": f"'{folder / 'waiting'}'"}


@pytest.mark.slow  # three trainings on two nodes; what the script decides is tested below
def test_a_run_on_two_nodes_that_is_preempted_is_the_unbroken_one(
    slurm: dict[str, str],
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write(tmp_path / "rows.jsonl", [{"prompt": f"the {w}"} for w in ("cat", "dog", "sun", "rain")])
    (tmp_path / "rewards.py").write_text(REWARD)
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RLHF": COMMAND}
    environment = slurm | more
    # What was there before is moved aside once, by the first attempt.
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{}")
    job = submit(environment, tmp_path, "ppo", *flags(PPO), "--overwrite", "true")
    for node in NODES:
        wait_for(tmp_path, environment, f"waits_on_{node}")
    assert list_checkpoints(tmp_path / "run") == []
    preempt(environment, tmp_path, job)
    (tmp_path / "warned").touch()
    wait_for(tmp_path, environment, "run/checkpoint-1")
    launch = read_manifest(tmp_path / "run/checkpoint-1")["launch"]
    assert launch == {"kind": "ddp", "num_processes": 2}
    assert "Restarts=1" in wait_for_end(environment, job)
    log = log_of(tmp_path)
    assert f"job {job} ended with 75 and queues again" in log
    assert log.count("SIGUSR1: saving where it stands") == 1
    assert log.count("run/checkpoint-1 holds where it stands; go on with --resume.") == 1
    titles = [line for line in log.splitlines() if line.strip() == "rlhf ppo"]
    assert len(titles) == 1  # of the closing table, which the first process alone prints
    assert [path.name for path in tmp_path.glob("run.old-*")] == ["run.old-1"]
    steps = [row["step"] for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert steps == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run/summary.json").read_text())["episodes"] == 32
    whole = [*flags(PPO | {"output_dir": "whole"}), "--accelerate_config", "cpu"]
    subprocess.run(
        [sys.executable, "-m", "recipes.cli", "ppo", *whole],
        cwd=tmp_path,
        env=os.environ | more | {"SLURM_RESTART_COUNT": "1"},
        check=True,
        capture_output=True,
    )
    got = load_file(tmp_path / "run/final/model.safetensors")
    expected = load_file(tmp_path / "whole/final/model.safetensors")
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("how", ["", "--full", "--signal=TERM --batch"])
def test_a_cancelled_job_stays_cancelled(how: str, slurm: dict[str, str], tmp_path: Path) -> None:
    environment = stand_in(tmp_path, slurm)
    job = submit(environment, tmp_path, "trains")
    for node in (0, 1):
        wait_for(tmp_path, environment, f"up_0_{node}")
    ask(environment, "scancel", *how.split(), job)
    said = wait_for_end(environment, job)
    assert "Restarts=0" in said
    assert "queues again" not in log_of(tmp_path)
    ended = "was ended by SIGTERM" if how.endswith("--batch") else "was cancelled"
    assert f"job {job} {ended}" in log_of(tmp_path)


def test_a_job_that_never_gets_to_train_ends(slurm: dict[str, str], tmp_path: Path) -> None:
    environment = stand_in(tmp_path, slurm)
    job = submit(environment, tmp_path, "loads")
    for attempt in (0, 1):
        wait_for(tmp_path, environment, f"up_{attempt}_[01]")
        ask(environment, "scancel", "--batch", "--signal=USR1", job)
    assert "Restarts=1" in wait_for_end(environment, job)
    assert f"job {job} ended twice before it had begun to train: give it" in log_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["trains", "waits"])  # for the warning, for the end itself
def test_a_job_at_its_time_limit_queues_again(
    recipe: str, slurm: dict[str, str], tmp_path: Path
) -> None:
    environment = stand_in(tmp_path, slurm)
    job = submit(environment, tmp_path, recipe, options="--time 1 --signal=B:USR1@50")
    said = wait_for_end(environment, job)
    assert "JobState=COMPLETED" in said
    assert "Restarts=1" in said
    assert f"job {job} ended with 75 and queues again" in log_of(tmp_path)
    assert ("DUE TO TIME LIMIT" in log_of(tmp_path)) == (recipe == "waits")


@pytest.mark.parametrize(("recipe", "code"), [("trains", 75), ("loads", 143)])
def test_a_preemption_that_warns_the_processes_alone_is_survived(
    recipe: str, code: int, tmp_path: Path
) -> None:
    with cluster(tmp_path / "slurm", "max_dbd_msg_action=discard") as alone:
        environment = stand_in(tmp_path, alone)
        job = submit(environment, tmp_path, recipe)
        for node in (0, 1):
            wait_for(tmp_path, environment, f"up_0_{node}")
        preempt(environment, tmp_path, job)
        wait_for(tmp_path, environment, "urgent.log")
        told = f"job {job} ended with {code} and queues again"
        assert told in log_of(tmp_path)
