"""What DeepSpeed's engine does to a backward pass, and what follows from it for PPO."""

import os
import subprocess
import sys
from pathlib import Path

from tests.distributed.runs_on_two import ROOT, needs_deepspeed, search_path

# One process, as accelerate's launcher starts it.
STEP = """
from tests.distributed import gloo_shim
import torch
from accelerate import Accelerator

accelerator = Accelerator()
plugin = accelerator.state.deepspeed_plugin
plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
layer = torch.nn.Linear(2, 1, bias=False)
engine, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.5))
before = layer.weight.detach().clone()
accelerator.backward(engine(torch.full((1, 2), 0.5)).sum())
print("moved by", (before - layer.weight.detach()).tolist())
torch.distributed.destroy_process_group()
"""
PPO = """
from tests.distributed import gloo_shim
from recipes.lib.ppo.config import PPOConfig

PPOConfig(output_dir="run", total_episodes=8, rollout_batch_size=8, num_mini_batches=1,
          per_device_train_batch_size=8, critic_warmup_rollouts=1, bf16=False)
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script)
    start = ["accelerate.commands.launch", "--config_file"]
    start += [str(ROOT / "configs/accelerate/zero2.yaml"), "--num_processes", "1", "script.py"]
    return subprocess.run(
        [sys.executable, "-m", *start],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_engine_steps_within_the_backward_pass(tmp_path: Path) -> None:
    needs_deepspeed("zero2")
    done = run(STEP, tmp_path)
    # The gradient is what comes in, 0.5 (its norm is below 1, so nothing is clipped), and nobody
    # has called optimizer.step().
    assert "moved by [[0.25, 0.25]]" in done.stdout, done.stderr[-2000:]


def test_a_warm_up_of_the_critic_is_refused_there(tmp_path: Path) -> None:
    needs_deepspeed("zero2")
    done = run(PPO, tmp_path)
    assert done.returncode != 0
    assert "UserError: critic_warmup_rollouts=1: DeepSpeed keeps gradients to" in done.stderr
