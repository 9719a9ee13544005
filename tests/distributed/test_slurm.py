"""scripts/slurm/train.sbatch on two nodes: warned, saved, queued again, resumed, finished."""

import json
import sys
import time
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.checkpoints import numbered, read_manifest
from recipes.lib.runs import read_jsonl
from tests.slurm_cluster import ask, cluster, is_installed
from tests.tiny_runs import flags, write

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/slurm/train.sbatch"
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
}


def until(folder: Path, what: str, environment: dict[str, str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not list(folder.glob(what)):
        log = folder / "job.log"
        told = ask(environment, "squeue") + (log.read_text() if log.exists() else "")
        assert time.monotonic() < end, told
        time.sleep(0.1)


@pytest.mark.skipif(not is_installed(), reason="slurm-wlm is not installed")
def test_a_job_on_two_nodes_survives_its_preemption(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write(tmp_path / "rows.jsonl", [{"prompt": f"the {w}"} for w in ("cat", "dog", "sun", "rain")])
    (tmp_path / "rewards.py").write_text(REWARD)
    with cluster(tmp_path / "slurm") as environment:
        environment |= {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RLHF": f"{sys.executable} -m recipes.cli",
            "MAIN_ADDRESS": "127.0.0.1",
        }
        where = ["--nodes", "2", "--chdir", str(tmp_path), "--output", str(tmp_path / "job.log")]
        words = ["ppo", *flags(PPO)]
        said = ask(environment, "sbatch", "--parsable", *where, str(SCRIPT), *words)
        assert said.isdigit(), said
        for node in ("n1", "n2"):
            until(tmp_path, f"waits_on_{node}", environment)
        assert numbered(tmp_path / "run") == []
        assert ask(environment, "scancel", "--batch", "--signal=USR1", said) == ""
        (tmp_path / "warned").touch()
        until(tmp_path, "run/checkpoint-1", environment)
        launch = read_manifest(tmp_path / "run/checkpoint-1")["launch"]
        assert launch == {"kind": "ddp", "num_processes": 2}
        until(tmp_path, "run/summary.json", environment)
        job = ask(environment, "scontrol", "show", "job", said)
    assert "Restarts=1" in job
    log = (tmp_path / "job.log").read_text()
    assert f"job {said} ended with 75 and queues again" in log
    assert log.count("SIGUSR1: saving where it stands") == 1
    assert log.count("run/checkpoint-1 holds where it stands; go on with --resume.") == 1
    assert log.count("rlhf ppo\n") <= 1  # the closing table, of the first process alone
    steps = [row["step"] for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert steps == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run/summary.json").read_text())["episodes"] == 32
