#!/usr/bin/env python3
"""How far adapters can come on the first exact task at all, beside how far PPO comes with them.

J is known exactly, so its gradient is, too: no sampling, no critic, no clipping. What gradient
ascent on the weights that a method may move reaches is a limit to hold its result against.
Writes the section on adapters of docs/benchmarks/ppo.md:

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ppo/exact_bounds.py --task FILE

FILE is ../shared/bench/exact_task.py. Some minutes on one core.
"""

import argparse
import contextlib
import copy
import io
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from torch import Tensor  # noqa: E402

from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.ppo.exact_methods import train  # noqa: E402
from scripts.bench.ppo.exact_tasks import (  # noqa: E402
    EOS,
    Task,
    all_rewards,
    completion_log_probs,
    find,
    judge,
    log_probs,
)

COMMAND = "OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ppo/exact_bounds.py --task FILE"
PAGE = ROOT / "docs/benchmarks/ppo.md"
HEADING, NEXT = "## What an adapter can reach", "## Seconds of training"
SEEDS = (21, 22, 23)
T_95 = 4.303  # two-sided 95 % point of Student's t with two degrees of freedom
RANK, RATE, STEPS = 16, 3e-3, 600
TRUNK = "all-linear"
WITH_HEAD = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
TARGETS = {"trunk": TRUNK, "head": WITH_HEAD}
PPO = {"learning_rate": 2e-3, "num_ppo_epochs": 8, "critic": "head"}


def levels(task: Task, model: Any, prompt: Sequence[int]) -> list[Tensor]:
    """As exact_tasks.log_probs, of one pass through the longest prefixes and with a gradient."""
    others = [i for i in range(task.size) if i != EOS]
    rows = list(itertools.product(others, repeat=task.max_tokens - 1))
    asked = task.prompt_ids(prompt)
    ids = torch.tensor([asked + list(row) for row in rows])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.double()
    found = logits[:, len(asked) - 1 :].log_softmax(-1)
    # a prefix of t tokens stands in every row that goes on from it, first in the first of them
    strides = [len(others) ** (task.max_tokens - 1 - t) for t in range(task.max_tokens)]
    return [found[::stride, t] for t, stride in enumerate(strides)]


def objective(task: Task, model: Any, theirs: list[Tensor]) -> Tensor:
    """J of a model, the mean over prompts, with its gradient."""
    total = torch.zeros((), dtype=torch.float64)
    for prompt, reference in zip(task.prompts, theirs, strict=True):
        ours = completion_log_probs(task, levels(task, model, prompt))
        reward = all_rewards(task, tuple(task.prompt_ids(prompt)))
        total = total + (ours.exp() * (reward - task.beta * (ours - reference))).sum()
    return total / len(task.prompts)


def bound(task: Task, targets: Any, rank: int) -> float:
    """Optimality that gradient ascent on J itself reaches.

    Args:
        task: The task.
        targets: Modules with adapters.
        rank: Rank of the adapters.

    Returns:
        The optimality after the last step.
    """
    model, _ = task.build()
    reference = copy.deepcopy(model)
    theirs = [
        completion_log_probs(task, log_probs(task, reference, prompt)) for prompt in task.prompts
    ]
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    model.eval()  # no dropout
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (-objective(task, model, theirs)).backward()
        optimizer.step()
        schedule.step()
    return judge(task, model, reference)["optimality"]


def reached(task: Task) -> list[float]:
    """Optimality of PPO with adapters on the head, too, over the seeds."""
    settings = PPO | {"lora": RANK, "lora_targets": WITH_HEAD}
    found = []
    for seed in SEEDS:
        with contextlib.redirect_stdout(io.StringIO()):
            found.append(train(task, "ppo", task.episodes, seed, settings)["optimality"])
        print(f"seed {seed}: {found[-1]:.4f}", flush=True)
    return found


def main() -> int:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--task", required=True, help="the first task's file")
    asked = parser.parse_args()
    hush()
    task = find(asked.task)
    bounds = {name: bound(task, targets, RANK) for name, targets in TARGETS.items()}
    print(bounds, flush=True)
    found = reached(task)
    section = SECTION.format(
        conditions=conditions(COMMAND),
        trunk=bounds["trunk"],
        head=bounds["head"],
        ppo=f"{mean(found):.4f} +- {T_95 * stdev(found) / len(found) ** 0.5:.4f}",
        worst=min(found),
        rank=RANK,
        steps=f"{STEPS:,}",
    )
    page = PAGE.read_text(encoding="utf-8")
    before, _, behind = page.partition(NEXT)
    before = before.partition(HEADING)[0].rstrip()
    PAGE.write_text(f"{before}\n\n{HEADING}\n{section}\n{NEXT}{behind}", encoding="utf-8")
    print(section)
    return 0


SECTION = """
{conditions}

The trunk of the first task is random, and an adapter moves it only so far. J is known exactly, and
so is its gradient: {steps} steps of Adam on it, without sampling, show what those weights can come
to (2,500 steps at a higher rate came less far: it is what was reached, and no proof).
Adapters are of rank {rank}; PPO is that of the tables (critic: head, learning rate 0.002, 8 passes,
three seeds). `all-linear` leaves the language model's head out.

| trained | exact gradient | PPO | worst |
|---|---|---|---|
| LoRA, all-linear | {trunk:.3f} | as above | |
| LoRA, all-linear and `lm_head` | {head:.3f} | {ppo} | {worst:.4f} |
| all weights | 1 | as above | |

So 0.81 under LoRA is the adapters' limit there and no fault of the method. With `lm_head` among the
targets (`lora_target_modules`) the limit is near 1, and PPO as near as with all
weights.
"""


if __name__ == "__main__":
    raise SystemExit(main())
