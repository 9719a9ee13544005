#!/usr/bin/env python3
"""What the quickstart's task demands, and what its result is worth: docs/benchmarks/quickstart.md.

First run ./scripts/quickstart; this reads its stages and runs some of them again with other seeds
and sizes, in a temporary folder: `.venv/bin/python scripts/bench/quickstart/quickstart_task.py`.
About 25 minutes on two cores.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import evaluate, feedback, ppo, reward  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first

CONFIGS = ROOT / "configs/quickstart"
RUN = ROOT / "runs/quickstart"
PAGE = ROOT / "docs/benchmarks/quickstart.md"
GOLD = f"{Path(__file__).parent / 'gold_reward.py'}:gold"
SEEDS = (1, 2, 3)
SIZES = (250, 1000, None)
LONG = {  # far too long, with nothing that holds the policy back
    "total_episodes": 7680,
    "kl_coef": 0.0,
    "learning_rate": 4e-4,
    "lr_scheduler_type": "constant",
}


def again(recipe: Any, name: str, out: Path, **changes: Any) -> dict[str, Any]:
    """Run a stage's YAML with changes."""
    settings = {"output_dir": str(out), "disable_tqdm": True} | changes
    if name in ("evaluate", "feedback"):
        del settings["disable_tqdm"]
    return recipe.run(parse(name, ["--config", str(CONFIGS / f"{name}.yaml")], settings))


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):.{digits}f} +- {stdev(values):.{digits}f}"


def number_rows(summary: dict[str, Any]) -> str:
    """The summary of the quickstart as it stands in runs/quickstart/summary.json."""
    numbers = {k: v for k, v in summary.items() if isinstance(v, float)}
    lines = [f"| {name} | {value:.4g} |" for name, value in numbers.items()]
    low, high = summary["win_rate_ci95"]
    return "\n".join([*lines, f"| win_rate_ci95 | {low:.4g} to {high:.4g} |"])


def fresh_pairs(folder: Path) -> str:
    """Pairs of the same SFT model and rater, on prompts of PPO: no tuning of the task saw them."""
    prompts = str(RUN / "base/data/ppo_prompts.jsonl")
    again(feedback, "feedback", folder / "fresh", dataset_name=prompts, seed=2)
    return str(folder / "fresh/final/test.jsonl")


def reward_rows(folder: Path) -> str:
    """Accuracy by number of pairs, of the reward model and of a bag of words."""
    lines, tests = [], {"held out": None, "fresh prompts": fresh_pairs(folder)}
    for size in SIZES:
        for name, test in tests.items() if size is None else [("held out", None)]:
            changes = {"max_train_rows": size, "test_dataset_name": test}
            runs = [
                again(reward, "reward", folder / f"rm-{size}-{name[0]}-{s}", **changes, seed=s)
                for s in SEEDS
            ]
            neural, words = ([r[k] for r in runs] for k in ("accuracy", "accuracy_bag_of_words"))
            cells = f"{runs[0]['accuracy_ceiling']:.3f} | {spread(neural)} | {spread(words)}"
            lines.append(f"| {size or 'all'} | {name} | {cells} |")
    return "\n".join(lines)


def result_rows(folder: Path) -> str:
    """PPO with other seeds, and its evaluation."""
    lines = []
    for seed in SEEDS:
        out = folder / f"ppo-{seed}"
        seconds = again(ppo, "ppo", out, seed=seed)["seconds"]
        numbers = again(evaluate, "evaluate", folder / f"evaluate-{seed}", run=str(out), seed=seed)
        low, high = numbers["win_rate_ci95"]
        cells = (
            f"{numbers['score_baseline']:.2f} | {numbers['score']:.2f} | "
            f"{numbers['win_rate']:.3f} ({low:.3f} to {high:.3f}) | {numbers['kl']:.1f}"
        )
        lines.append(f"| {seed} | {cells} | {seconds:.0f} |")
    return "\n".join(lines)


def long_rows(folder: Path) -> str:
    """PPO far too long: what the reward model says and what is true."""
    changes = LONG | {
        "reward_funcs": [str(RUN / "reward"), GOLD],
        "reward_weights": [1.0, 0.0],
    }
    again(ppo, "ppo", folder / "long", **changes)
    rows = [r for r in read_jsonl(folder / "long/metrics.jsonl") if "objective/kl" in r]
    kept = rows[:: max(1, len(rows) // 10)]
    return "\n".join(
        f"| {r['episode']} | {r['objective/kl']:.1f} | {r['rewards/reward']:.2f} | "
        f"{r['rewards/gold']:.2f} | {r['completions/mean_length']:.0f} |"
        for r in kept
    )


def main() -> int:
    """Measure and write the page."""
    hush()
    summary = json.loads((RUN / "summary.json").read_text(encoding="utf-8"))
    folder = Path(tempfile.mkdtemp())
    stages = "\n".join(f"| {name} | {s:.3g} |" for name, s in summary["seconds"].items())
    page = PAGE_TEXT.format(
        conditions=conditions(".venv/bin/python scripts/bench/quickstart/quickstart_task.py"),
        stages=stages,
        total=sum(summary["seconds"].values()),
        numbers=number_rows(summary),
        results=result_rows(folder),
        rewards=reward_rows(folder),
        long=long_rows(folder),
        of_ppo="seconds of PPO (one thread, beside other work)",
        **summary,
    )
    PAGE.write_text(page, encoding="utf-8")
    print(page)
    return 0


PAGE_TEXT = """# The quickstart

{conditions}

## Time and memory

| stage | seconds |
|---|---|
{stages}
| together | {total:.0f} |

Peak resident memory {peak_rss_mb:.0f} MiB, one process for all stages.

## Result

The run whose time stands above:

| number | value |
|---|---|
{numbers}

PPO against SFT on 512 prompts that no stage trained on, by the gold score that the simulated rater
draws on; three seeds of PPO and of the evaluation, on the same SFT and reward model:

| seed | gold of SFT | gold of PPO | win rate (95 % interval) | KL, nats per completion | {of_ppo} |
|---|---|---|---|---|---|
{results}

## The task

Accuracy of the reward model by number of pairs trained on, mean and standard deviation over three
seeds of the order of training, with the ceiling that the noise of the simulated rater leaves. The
task was tuned on the held-out pairs; the fresh prompts are those of the PPO stage, which no tuning
has seen, with other draws of sampling and rating:

| pairs | tested on | ceiling | reward model | bag of words |
|---|---|---|---|---|
{rewards}

PPO run far too long (three times the episodes, no KL penalty, constant learning rate 4e-4), against
the same reward model; gold is logged and has weight 0:

| episode | KL, nats per completion | reward model | gold | tokens |
|---|---|---|---|---|
{long}
"""


if __name__ == "__main__":
    raise SystemExit(main())
