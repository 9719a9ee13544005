"""What DeepSpeed's engine does to a backward pass, and what follows from it for PPO."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.lib.runs.files import read_jsonl
from recipes.lib.trainers.skipped_steps import has_finite_weights
from tests.helpers.distributed.runs_on_two import (
    ROOT,
    fill,
    needs_deepspeed,
    search_path,
    weights,
    words_of,
)

# One process, as accelerate's launcher starts it; the keys that it is given are PPO's, refused.
STEP = """
import json, sys
from recipes.lib.models.quick_import import import_quickly
import_quickly()
from tests.helpers.distributed import gloo_shim
import torch
from accelerate import Accelerator
from recipes.lib.distributed.process_exit import end, leave_group
from recipes.lib.errors import UserError
from recipes.lib.ppo.config import PPOConfig

accelerator = Accelerator()
plugin = accelerator.state.deepspeed_plugin
plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
layer = torch.nn.Linear(2, 1, bias=False)
engine, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.5))
before = layer.weight.detach().clone()
accelerator.backward(engine(torch.full((1, 2), 0.5)).sum())
told = {"moved": (before - layer.weight.detach()).tolist()}
for name, value in json.loads(sys.argv[1]).items():
    try:
        PPOConfig(output_dir="run", total_episodes=8, rollout_batch_size=8, num_mini_batches=1,
                  per_device_train_batch_size=8, bf16=False, **{name: value})
    except UserError as error:
        told[name] = str(error)
print(json.dumps(told), file=open("told.json", "w"))
leave_group()
end(0)
"""
SPOILED = """
import sys
from recipes.lib.models.quick_import import import_quickly
import_quickly()
from tests.helpers.distributed import gloo_shim
from recipes import sft
from recipes.lib.trainers import progress
from recipes.lib.recipe.main import parse
from recipes.lib.distributed.process_exit import end, leave_group

plain = progress.add_run_callbacks

def watch(trainer, *more):
    plain(trainer, *more)
    compute = trainer.compute_loss

    def spoiled(*args, **kwargs):
        loss = compute(*args, **kwargs)
        return loss * float("nan") if trainer.state.global_step == 1 else loss

    trainer.compute_loss = spoiled

progress.add_run_callbacks = watch
sft.run(parse("sft", sys.argv[1:]))
leave_group()
end(0)
"""

BRAKED = """
import sys
from recipes.lib.models.quick_import import import_quickly
import_quickly()
from tests.helpers.distributed import gloo_shim
from recipes import ppo
from recipes.lib.recipe.main import parse
from recipes.lib.distributed.process_exit import end, leave_group

ppo.run(parse("ppo", sys.argv[1:]))
leave_group()
end(0)
"""


def run(
    script: str, folder: Path, kind: str = "zero2", words: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script)
    start = ["accelerate.commands.launch", "--config_file"]
    start += [str(ROOT / f"configs/accelerate/{kind}.yaml"), "--num_processes", "1", "script.py"]
    start += words
    return subprocess.run(
        [sys.executable, "-m", *start],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


REFUSED = {
    "critic_warmup_rollouts": (1, "critic_warmup_rollouts=1: DeepSpeed keeps gradients to"),
    "save_only_model": (True, "save_only_model=true: under DeepSpeed the weights of PPO's"),
}


@pytest.mark.slow  # DeepSpeed compiles an extension for a minute before its first step
def test_the_engine_steps_within_the_backward_pass_and_what_ppo_cannot_do_there_is_refused(
    tmp_path: Path,
) -> None:
    needs_deepspeed("zero2")
    done = run(
        STEP, tmp_path, words=[json.dumps({key: value for key, (value, _) in REFUSED.items()})]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((tmp_path / "told.json").read_text())
    # The gradient is what comes in, 0.5 (its norm is below 1, so nothing is clipped), and nobody
    # has called optimizer.step().
    assert told["moved"] == [pytest.approx([0.25, 0.25], abs=1e-6)]  # fp32, of weights below 1
    for key, (_, sentence) in REFUSED.items():
        assert told[key].startswith(sentence)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_a_step_that_is_not_finite_is_skipped_counted_and_kept(kind: str, tmp_path: Path) -> None:
    needs_deepspeed(kind)
    there = tmp_path / "runs"
    fill(there)
    more = {"logging_steps": 1, "save_strategy": "no", "global_batch_size": 4}
    done = run(SPOILED, there, kind, words_of("sft", False, **more)[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2: gradients are not finite, so it is skipped" in done.stderr
    rows = [row for row in read_jsonl(there / "sft/metrics.jsonl") if "loss" in row]
    assert [row.get("skipped_steps") for row in rows] == [None, 1, 1]
    assert (there / "sft/faults/step-2-process-0.safetensors").is_file()
    assert all(tensor.isfinite().all() for tensor in weights(there / "sft/final").values())


@pytest.mark.slow  # as above
def test_item_50_behind_the_brake_the_engine_makes_no_step_and_the_schedule_goes_on(
    tmp_path: Path,
) -> None:
    needs_deepspeed("zero2")
    there = tmp_path / "runs"
    fill(there)
    more = {"num_ppo_epochs": 4, "max_approx_kl": 1e-9, "lr_scheduler_type": "linear"}
    more |= {"logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    done = run(BRAKED, there, "zero2", words_of("ppo_model", False, **more)[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row for row in read_jsonl(there / "ppo_model/metrics.jsonl") if "loss" in row]
    # the second update shows that the first one moved the policy; the engine has made it by then
    assert ["loss/policy_avg" in row for row in rows] == [True, True, False, False] * 3
    assert [row.get("policy/braked") for row in rows] == [0.0, 1.0, None, None] * 3
    rates = [0.02 * (1 - step / 12) for step in range(12)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)


def test_a_shard_of_zero3_that_is_not_finite_is_seen() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.empty(0)  # as ZeRO-3 leaves it, with the shard beside it
    for number, is_finite in ((1.0, True), (float("nan"), False)):
        layer.weight.ds_tensor = torch.tensor([number])  # type: ignore[attr-defined]
        assert has_finite_weights(layer) is is_finite
