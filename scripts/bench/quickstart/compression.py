#!/usr/bin/env python3
"""What fewer bits and fewer trained weights cost: PPO on the quickstart's task.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/quickstart/compression.py

First run ./scripts/quickstart. Of each seed and each way to hold and to train the policy PPO runs
as the quickstart's does, with the critic as a head and a learning rate of 2e-3 where LoRA learns.
What was run is kept in runs/compression.jsonl. Some two minutes a run on one core, and more in
4 and 8 bits, which CPUs have no fast kernels for.
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from trl import ModelConfig  # noqa: E402

from recipes.lib.models.folders import resolve_model  # noqa: E402
from recipes.lib.models.policies import load_policy  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.environments.classical import table  # noqa: E402
from scripts.bench.kept import kept  # noqa: E402
from scripts.bench.quickstart.quickstart_task import RUN, hidden_score, ppo_by  # noqa: E402

COMMAND = "OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/quickstart/compression.py"
PAGE, KEPT = ROOT / "docs/benchmarks/compression.md", ROOT / "runs/compression.jsonl"
SEEDS = (1, 2, 3)


def lora(rank: int, **keys: Any) -> dict[str, Any]:
    """LoRA of a rank on all layers."""
    own = {"use_peft": True, "lora_r": rank, "lora_alpha": 2 * rank, "learning_rate": 2e-3}
    return own | {"lora_target_modules": ["all-linear"], "lora_dropout": 0.0} | keys


WAYS: dict[str, dict[str, Any]] = {
    "all weights, float32": {},
    "all weights, bfloat16": {"dtype": "bfloat16"},
    "LoRA 4, float32": lora(4),
    "LoRA 16, float32": lora(16),
    "LoRA 64, float32": lora(64),
    "LoRA 16, bfloat16": lora(16, dtype="bfloat16"),
    "LoRA 16, int8": lora(16, load_in_8bit=True),
    "LoRA 16, NF4": lora(16, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}
HELD = ("dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")
PAGE_TEXT = """# Compression

{conditions}

PPO on the quickstart's task from its SFT model, 2,304 episodes, critic: head. Score: the hidden one
of the last third of the rollouts, mean and standard deviation over seeds {seeds}; KL in nats per
completion at the end. Held: the policy's weights while it learns; saved: what final/ takes.
Seconds are of one core and of the whole run.

{table}
"""


def measure(name: str, seed: int) -> dict[str, Any]:
    """PPO one way: score, KL, bytes, seconds."""
    own = WAYS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "ppo"
        summary, logged = ppo_by(RUN / "reward", folder, seed, gradient_checkpointing=False, **own)
        saved = sum(file.stat().st_size for file in (folder / "final").rglob("*.safetensors"))
    held = {key: own[key] for key in HELD if key in own}
    path = resolve_model(str(RUN / "sft"))
    model = load_policy(ModelConfig(model_name_or_path=path, **({"dtype": "float32"} | held)))
    return {
        "gold": hidden_score(logged),
        "kl": logged[-1]["objective/kl"],
        "held": model.get_memory_footprint(),
        "saved": saved,
        "seconds": summary["seconds"],
    }


def main() -> int:
    """Runs all ways over seeds and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone, and no page")
    given = parser.parse_args()
    hush()
    found = {
        (name, seed): kept(KEPT, [name, seed], functools.partial(measure, name, seed))
        for seed in given.seeds or SEEDS
        for name in WAYS
    }
    lines = []
    for name in WAYS if given.seeds is None else ():
        rows = [found[name, seed] for seed in SEEDS]
        golds, first = [row["gold"] for row in rows], rows[0]
        sizes = [f"{first[key] / 2**20:.2f} MiB" for key in ("held", "saved")]
        kl, seconds = (mean(row[key] for row in rows) for key in ("kl", "seconds"))
        score = f"{mean(golds):.2f} +- {stdev(golds):.2f}"
        lines.append([name, score, f"{kl:.1f}", *sizes, f"{seconds:.0f}"])
    if lines:
        heads = ["policy", "score", "KL", "held", "saved", "seconds"]
        shown = {"seeds": ", ".join(map(str, SEEDS)), "table": table(heads, lines)}
        text = PAGE_TEXT.format(conditions=conditions(COMMAND), **shown)
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
