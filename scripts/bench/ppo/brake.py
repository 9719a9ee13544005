#!/usr/bin/env python3
"""What PPO's brake (max_approx_kl) does: to a run that jumps, to healthy ones, on known optima.

First run ./scripts/quickstart, whose SFT and reward model this reads; then
`OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ppo/brake.py --task FILE` writes
docs/benchmarks/brake.md. FILE is ../shared/bench/exact_task.py. About half an hour on one core;
what was run is kept in runs/brake.jsonl, so that a stopped bench goes on. With the name of a part
(long, quickstart, exact) that part alone is run, and no page is written.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import ppo  # noqa: E402
from recipes.lib.ppo.config import PPOConfig  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.kept import kept  # noqa: E402
from scripts.bench.ppo.exact_methods import train  # noqa: E402
from scripts.bench.ppo.exact_tasks import find  # noqa: E402
from scripts.bench.quickstart.quickstart_task import CONFIGS, GOLD, LONG, RUN  # noqa: E402

COMMAND = "OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ppo/brake.py --task FILE"
PAGE = ROOT / "docs/benchmarks/brake.md"
KEPT = ROOT / "runs/brake.jsonl"
LONG_SEEDS, QUICK_SEEDS, SEEDS = (1, 2, 3), (1,), (21, 22, 23)
DEFAULT = PPOConfig.max_approx_kl
BOUNDS = (None, DEFAULT)
STEPS = 8  # of a rollout of the quickstart


def tales(seed: int, bound: float | None, **changes: Any) -> dict[str, list[float]]:
    """PPO of the quickstart with changes; numbers of each step, gold logged with weight 0."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": f"{folder}/run",
            "model_name_or_path": str(RUN / "sft"),
            "dataset_name": str(RUN / "base/data/ppo_prompts.jsonl"),
            "critic_model_name_or_path": str(RUN / "reward"),
            "reward_funcs": [str(RUN / "reward"), GOLD],
            "reward_weights": [1.0, 0.0],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "max_approx_kl": bound,
            "seed": seed,
        }
        ppo.run(parse("ppo", ["--config", str(CONFIGS / "ppo.yaml")], settings | changes))
        rows = [r for r in read_jsonl(Path(folder) / "run/metrics.jsonl") if "loss" in r]
    starts = rows[::STEPS]
    return {
        "kl": [r["objective/kl"] for r in starts],
        "gold": [r["rewards/gold"] for r in starts],
        "reward": [r["rewards/reward"] for r in starts],
        "distance": [r["policy/approxkl_avg"] for r in rows],
        "braked": [r.get("policy/braked", 0.0) for r in rows],
    }


def long_run(seed: int, bound: float | None) -> dict[str, list[float]]:
    """Too long, with nothing that holds the policy back: twelve rollouts of LONG."""
    changes = LONG | {"total_episodes": 3072}
    return kept(KEPT, ["long", seed, bound], lambda: tales(seed, bound, **changes))


def quick_run(seed: int, bound: float | None) -> dict[str, list[float]]:
    """PPO of the quickstart as it is."""
    return kept(KEPT, ["quickstart", seed, bound], lambda: tales(seed, bound))


def exact_run(task: str, seed: int, bound: float | None) -> dict[str, Any]:
    """PPO of docs/benchmarks/ppo.md on a known optimum."""
    settings = {"critic": "head", "learning_rate": 2e-3, "num_ppo_epochs": 8}
    settings |= {"max_approx_kl": bound}
    asked = find(task)
    return kept(
        KEPT,
        ["exact", asked.name, seed, bound],
        lambda: train(asked, "ppo", asked.episodes, seed, settings),
    )


def jump(kl: list[float]) -> float:
    """Largest rise of the KL from one rollout to the next, nats."""
    return max(after - before for before, after in pairwise(kl))


def long_rows() -> str:
    """KL of each rollout, without the brake and with it."""
    lines = []
    for seed in LONG_SEEDS:
        for bound in BOUNDS:
            run = long_run(seed, bound)
            kl = " ".join(f"{value:.1f}" for value in run["kl"])
            cells = f"{seed} | {bound or 'none'} | {kl} | {jump(run['kl']):.1f} | "
            last = f"{run['reward'][-1]:.2f} | {run['gold'][-1]:.2f}"
            lines.append(f"| {cells}{last} | {mean(run['braked']):.2f} |")
    return "\n".join(lines)


def quick_rows() -> str:
    """The quickstart's own PPO."""
    lines = []
    for seed in QUICK_SEEDS:
        for bound in BOUNDS:
            run = quick_run(seed, bound)
            starts = range(0, len(run["braked"]), STEPS)
            counts = " ".join(f"{sum(run['braked'][i : i + STEPS]):.0f}" for i in starts)
            cells = f"{seed} | {bound or 'none'} | {max(run['kl']):.1f} | {run['kl'][-1]:.1f} | "
            lines.append(f"| {cells}{run['gold'][-1]:.2f} | {counts} |")
    return "\n".join(lines)


def exact_rows(first: str) -> str:
    """Optimality."""
    lines = []
    for bound in BOUNDS:
        found = [exact_run(first, seed, bound)["optimality"] for seed in SEEDS]
        each = " ".join(f"{value:.4f}" for value in found)
        lines.append(f"| {find(first).name} | {bound or 'none'} | {mean(found):.4f} | {each} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--task", required=True, help="the first exact task's file")
    parser.add_argument("part", nargs="?", choices=["long", "quickstart", "exact"])
    asked = parser.parse_args()
    hush()
    parts: dict[str, Callable[[], str]] = {
        "long": long_rows,
        "quickstart": quick_rows,
        "exact": lambda: exact_rows(asked.task),
    }
    if asked.part:
        print(parts[asked.part]())
        return 0
    tables = {name: rows() for name, rows in parts.items()}
    PAGE.write_text(PAGE_TEXT.format(conditions=conditions(COMMAND), **tables), encoding="utf-8")
    return 0


PAGE_TEXT = """# The brake of PPO

{conditions}

`max_approx_kl` bounds how far one rollout's updates move the policy: docs/ppo.md. KL is in nats per
completion, to the reference.

## A run that jumps

The quickstart's SFT and reward model; PPO with no KL penalty and a constant learning rate of 4e-4
(LONG in scripts/bench/quickstart/quickstart_task.py), twelve rollouts of 256, each used for eight
updates. Largest rise: of the KL, from one rollout to the next. Reward, gold: mean of the last
rollout by the reward model, which is trained on, and by the true score, which is not. Braked: share
of all updates.

| seed | bound | KL of each rollout | largest rise | reward | gold | braked |
|---|---|---|---|---|---|---|
{long}

## The quickstart's own PPO

Its KL penalty and falling rate. Gold: the true score of the last rollout. Braked: of the eight
updates of each rollout, how many.

| seed | bound | highest KL | last KL | gold | braked |
|---|---|---|---|---|---|
{quickstart}

## Known optima

Tasks and setting of [ppo.md](ppo.md) (critic: head, learning rate 2e-3, 8 passes); optimality, mean
and each seed.

| task | bound | mean | seeds |
|---|---|---|---|
{exact}
"""


if __name__ == "__main__":
    raise SystemExit(main())
