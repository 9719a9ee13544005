#!/usr/bin/env python3
"""One process against two, on the CPU: tokens a second and efficiency by phase; writes a page.

`.venv/bin/python scripts/bench/distributed/scaling.py` writes docs/benchmarks/scaling.md in some
minutes on two cores, one thread a process; `--repeats 1` is a trial. The model is the one that the
quickstart ships.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.runs.files import read_jsonl  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the paths above come first

PAGE = ROOT / "docs/benchmarks/scaling.md"
LOAD = 0.3  # of other programs on the machine, above which the page says so
REWARD = "def happy(completions, **_):\n    return [text.count('happy') for text in completions]\n"
COMMON = "--use_cpu true --bf16 false --disable_tqdm true --save_strategy no --seed 1".split()
SFT = """--model_name_or_path base --dataset_name base/data/sft_train.jsonl --max_length 160
--global_batch_size 32 --per_device_train_batch_size 16 --max_steps 60 --logging_steps 10
--gradient_checkpointing false""".split()
PPO = """--model_name_or_path base --dataset_name base/data/ppo_prompts.jsonl
--reward_funcs rewards.py:happy --total_episodes 1024 --rollout_batch_size 256 --num_ppo_epochs 2
--num_mini_batches 4 --per_device_train_batch_size 32 --sampling_batch_size 256
--scoring_batch_size 64 --max_completion_length 72 --critic model""".split()
RUNS = {"sft": SFT, "ppo": PPO}
PHASES = ("sampling", "scoring", "training")
HOW = {1: [], 2: ["--accelerate_config", "cpu", "--num_processes", "2"]}


def run(folder: Path, *words: str) -> None:
    """Run a recipe in a process of its own, one thread each."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "recipes.cli", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-3000:]}")


def rates(recipe: str, folder: Path) -> dict[str, float]:
    """Tokens a second by phase, all processes together, without the first log."""
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
    if recipe == "sft":
        tokens = rows[-1]["num_tokens"] - rows[0]["num_tokens"]
        return {"sft training": tokens / (rows[-1]["seconds"] - rows[0]["seconds"])}
    said: dict[str, float] = {}
    for phase in PHASES:
        seconds = sum(row[f"time/{phase}"] for row in rows[1:])
        tokens = sum(r[f"time/{phase}_tokens_per_second"] * r[f"time/{phase}"] for r in rows[1:])
        said[f"ppo {phase}"] = tokens / seconds
    return said


def table(measured: dict[int, dict[str, list[float]]]) -> str:
    """Rows of the page."""
    lines = ["| phase | 1 process | 2 processes | efficiency |", "|---|---|---|---|"]
    for phase, one in measured[1].items():
        two = measured[2][phase]
        efficiency = mean(two) / mean(one) / 2
        lines.append(f"| {phase} | {shown(one)} | {shown(two)} | {efficiency:.2f} |")
    return "\n".join(lines)


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    spread = f" +- {stdev(values):,.0f}" if len(values) > 1 else ""
    return f"{mean(values):,.0f}{spread}"


def busy() -> str:
    """What else the machine did, as a sentence."""
    load = os.getloadavg()[0]
    if load < LOAD:
        return "Nothing else ran."
    return f"The machine was busy with other work (load {load:.1f} before the start)."


def main(argv: list[str] | None = None) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args(argv).repeats
    others = busy()
    measured: dict[int, dict[str, list[float]]] = {1: {}, 2: {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rewards.py").write_text(REWARD)
        config = str(ROOT / "configs/quickstart/base.yaml")
        run(folder, "base", "--config", config, "--output_dir", "base")
        for repeat in range(repeats):
            for number, how in HOW.items():
                for recipe, words in RUNS.items():
                    out = f"{recipe}-{number}-{repeat}"
                    run(folder, recipe, *words, *COMMON, "--output_dir", out, *how)
                    for phase, rate in rates(recipe, folder / out).items():
                        measured[number].setdefault(phase, []).append(rate)
                        print(f"{out}: {phase} {rate:,.0f} tokens/s", file=sys.stderr)
    PAGE.write_text(page(measured, others, repeats), encoding="utf-8")


def page(measured: dict[int, dict[str, list[float]]], others: str, repeats: int) -> str:
    """The page."""
    return PAGE_TEXT.format(
        conditions=conditions(
            f".venv/bin/python scripts/bench/distributed/scaling.py --repeats {repeats}"
        ),
        others=others,
        repeats=(f"mean and standard deviation of {repeats} runs" if repeats > 1 else "of one run"),
        table=table(measured),
    )


PAGE_TEXT = """# One process against two

{conditions}

{others} One thread a process, gloo, `--accelerate_config cpu`; the model that the quickstart ships
(3.1 MB), sft with 32 rows a step, ppo with 256 episodes a rollout and `critic: model`. The same
words on one and on two processes, so the same steps. Tokens a second of all processes together,
{repeats}, without each run's first log. Efficiency is the rate of two over twice the rate of one.

{table}

What scaling should cost on cards, and what has been run at all, is in [scaling](../scaling.md).
"""


if __name__ == "__main__":
    main()
