#!/usr/bin/env python3
"""PPO, RLOO, GRPO, DPO and KTO from the same SFT model of the quickstart; writes a page.

First run ./scripts/quickstart; this reads its SFT model, its pairs and its reward model, trains
each method with three learning rates and one seed, and judges every policy by the hidden true
score: `.venv/bin/python scripts/bench/ppo/methods_on_tales.py`. Writes docs/benchmarks/methods.md.
About half an hour on one core; a run that is done in runs/methods is not run again, and --methods
runs some of them, beside others, without the page.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import dpo, evaluate, grpo, kto, ppo, rloo  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first

RUN = ROOT / "runs/quickstart"
FOLDER = ROOT / "runs/methods"
PAGE = ROOT / "docs/benchmarks/methods.md"
EVALUATE = str(ROOT / "configs/quickstart/evaluate.yaml")
COMMON = {
    "model_name_or_path": str(RUN / "sft"),
    "dtype": "float32",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 1,
}
ONLINE = COMMON | {
    "dataset_name": str(RUN / "base/data/ppo_prompts.jsonl"),
    "reward_funcs": [str(RUN / "reward")],
    "max_completion_length": 72,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 64,
}
# 2,304 completions, 256 at a time, two passes of four steps over each, as PPO in the quickstart
GROUPS = ONLINE | {
    "num_generations": 4,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": 72,
    "beta": 0.02,
    "temperature": 1.0,
}
PAIRS = COMMON | {
    "dataset_name": str(RUN / "feedback"),
    "max_length": 160,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "beta": 0.1,
}
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ppo": (
        ppo,
        ONLINE
        | {
            "total_episodes": 2304,
            "rollout_batch_size": 256,
            "num_ppo_epochs": 2,
            "num_mini_batches": 4,
            "sampling_batch_size": 256,
            "scoring_batch_size": 64,
            "kl_coef": 0.02,
        },
    ),
    "rloo": (rloo, GROUPS),
    "grpo": (grpo, GROUPS),
    "dpo": (dpo, PAIRS),
    "kto": (kto, PAIRS),
}
RATES = {"ppo": (1e-4, 3e-4, 1e-3), "rloo": (1e-4, 3e-4, 1e-3), "grpo": (1e-4, 3e-4, 1e-3)}
OFFLINE_RATES = (3e-5, 1e-4, 3e-4)


def row(name: str, rate: float) -> str:
    """Train and judge once."""
    recipe, settings = METHODS[name]
    out, judged = FOLDER / f"{name}-{rate}", FOLDER / f"evaluate-{name}-{rate}"
    if not (judged / "summary.json").is_file():
        given = {"learning_rate": rate, "output_dir": str(out), "overwrite": True}
        recipe.run(parse(name, [], settings | given))
        told = {"run": str(out), "baseline": str(RUN / "sft"), "output_dir": str(judged)}
        told["dataset_name"] = str(RUN / "base/data/eval_prompts.jsonl")
        evaluate.run(parse("evaluate", ["--config", EVALUATE], told))
    said = json.loads((judged / "summary.json").read_text(encoding="utf-8"))
    seconds = json.loads((out / "summary.json").read_text(encoding="utf-8"))["seconds"]
    low, high = said["win_rate_ci95"]
    return (
        f"| {name} | {rate:g} | {said['score']:.2f} | {said['win_rate']:.3f} ({low:.3f} to "
        f"{high:.3f}) | {said['kl']:.1f} | {seconds:.0f} |"
    )


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="these, without the page")
    asked = parser.parse_args().methods
    hush()
    rows = []
    for name in asked or METHODS:
        for rate in RATES.get(name, OFFLINE_RATES):
            rows.append(row(name, rate))
            print(rows[-1], flush=True)
    if not asked:
        command = ".venv/bin/python scripts/bench/ppo/methods_on_tales.py"
        PAGE.write_text(PAGE_TEXT.format(conditions=conditions(command), rows="\n".join(rows)))
    return 0


PAGE_TEXT = """# Methods on the quickstart's task

{conditions}

All start from the SFT model of the quickstart. PPO, RLOO and GRPO sample 2,304 completions against
its reward model, DPO and KTO read its training pairs once. One seed; three learning rates each, all
shown. True score (the hidden gold score, which none of them reads) and win rate against SFT on 512
prompts that no stage trained on, with the 95 % bootstrap interval; KL in nats per completion.

| method | learning rate | true score | win rate | KL | seconds |
|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
