#!/usr/bin/env python3
"""Seconds and memory of an iteration of PPO under LoRA, beside the last PPO of TRL.

`.venv/bin/python scripts/bench/speed/ppo_vs_trl.py --trl112 FOLDER`, where FOLDER holds the
unpacked wheel of trl 1.12.0. Same model, prompts, rollout, passes, mini-batches and LoRA rank; runs
alternate, each in a process of its own. Writes docs/benchmarks/speed.md. About fifteen minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.speed.speed_task import (  # noqa: E402
    COMPLETION_TOKENS,
    EPISODES,
    LORA,
    PROMPT_TOKENS,
    write_models,
)

PAGE = ROOT / "docs/benchmarks/speed.md"
COMMAND = ".venv/bin/python scripts/bench/speed/ppo_vs_trl.py --trl112 FOLDER"
REPEATS = 5
PHASES = ("sampling", "scoring", "training")
SIDES = {
    "critic: head": ["speed_ours.py", "head"],
    "critic: adapter": ["speed_ours.py", "adapter"],
    "critic: head, MKL": ["speed_ours.py", "head", "mkl"],
    "critic: adapter, MKL": ["speed_ours.py", "adapter", "mkl"],
    "TRL 1.12": ["speed_trl112.py"],
}


def run(side: str, models: Path, trl112: str) -> dict[str, Any]:
    """One run of one side in a process of its own."""
    script, *more = SIDES[side]
    environment = dict(os.environ)
    if script == "speed_trl112.py":
        environment["PYTHONPATH"] = trl112
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(models), *more],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def spread(values: list[float]) -> str:
    """Mean and standard deviation over repeats."""
    return f"{mean(values):.2f} +- {stdev(values):.2f}"


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--trl112", required=True, help="folder of trl 1.12.0")
    asked = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        for repeat in range(REPEATS):
            for side in SIDES:
                results[side].append(run(side, Path(folder), asked.trl112))
                print(repeat + 1, side, results[side][-1], flush=True)
    totals = {s: [sum(r["seconds"].values()) for r in rows] for s, rows in results.items()}
    of_trl = totals["TRL 1.12"]
    lines = []
    for side, rows in results.items():
        ratios = [one / other for one, other in zip(totals[side], of_trl, strict=True)]
        phases = " | ".join(spread([row["seconds"][phase] for row in rows]) for phase in PHASES)
        peaks = [row["memory"]["peak"] - row["memory"]["imports"] for row in rows]
        lines.append(
            f"| {side} | {spread(totals[side])} | {phases} | {spread(ratios)} | {spread(peaks)} |"
        )
    page = PAGE_TEXT.format(
        conditions=conditions(COMMAND),
        rows="\n".join(lines),
        repeats=REPEATS,
        episodes=EPISODES,
        prompt=PROMPT_TOKENS,
        completion=COMPLETION_TOKENS,
        rank=LORA["r"],
    )
    PAGE.write_text(page, encoding="utf-8")
    return 0


PAGE_TEXT = """# Speed and memory beside TRL's PPO

{conditions}

An iteration of PPO: {episodes} episodes of {prompt} + {completion} tokens, 4 passes of 4 optimizer
steps, LoRA of rank {rank} on every layer; policy and reward model are of the Qwen3 class with 7
million random weights each. TRL trains a critic model whole. Runs alternate, {repeats} repeats,
each a process of its own that leaves its first iteration out. Mean and standard deviation over
repeats; the ratio is that of the runs that followed each other. Memory is the peak of the process
above what it had after its imports. On this processor the recipes take oneDNN's products instead of
MKL's, which PyTorch takes by itself ([cpu.md](cpu.md)); the rows with MKL have the same products as
TRL.

| PPO | seconds | sampling | scoring | training | of TRL 1.12 | memory, GiB |
|---|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
