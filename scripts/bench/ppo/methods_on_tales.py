#!/usr/bin/env python3
"""PPO, RLOO, GRPO, DPO and KTO from the same SFT model of the quickstart; writes a page.

First run ./scripts/quickstart; this reads its SFT model, its pairs and its reward model, trains
each method with three learning rates and one seed, and judges every policy by the hidden true
score: `.venv/bin/python scripts/bench/ppo/methods_on_tales.py`. Writes docs/benchmarks/methods.md.
About 15 minutes on two cores.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import dpo, evaluate, grpo, kto, ppo, rloo  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first

RUN = ROOT / "runs/quickstart"
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
# 2,560 completions, 256 at a time, two passes of four steps over each, as PPO in the quickstart
GROUPS = ONLINE | {
    "num_generations": 4,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": 80,
    "beta": 0.05,
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
            "total_episodes": 2560,
            "rollout_batch_size": 256,
            "num_ppo_epochs": 2,
            "num_mini_batches": 4,
            "sampling_batch_size": 256,
            "scoring_batch_size": 64,
            "kl_coef": 0.05,
        },
    ),
    "rloo": (rloo, GROUPS),
    "grpo": (grpo, GROUPS),
    "dpo": (dpo, PAIRS),
    "kto": (kto, PAIRS),
}
RATES = {"ppo": (1e-4, 3e-4, 1e-3), "rloo": (1e-4, 3e-4, 1e-3), "grpo": (1e-4, 3e-4, 1e-3)}
OFFLINE_RATES = (3e-5, 1e-4, 3e-4)


def row(name: str, rate: float, folder: Path) -> str:
    """Train and judge once."""
    recipe, settings = METHODS[name]
    out = str(folder / f"{name}-{rate}")
    seconds = recipe.run(parse(name, [], settings | {"learning_rate": rate, "output_dir": out}))[
        "seconds"
    ]
    told = {
        "run": out,
        "baseline": str(RUN / "sft"),
        "dataset_name": str(RUN / "base/data/eval_prompts.jsonl"),
        "output_dir": str(folder / f"evaluate-{name}-{rate}"),
    }
    said = evaluate.run(parse("evaluate", ["--config", EVALUATE], told))
    low, high = said["win_rate_ci95"]
    return (
        f"| {name} | {rate:g} | {said['score']:.2f} | {said['win_rate']:.3f} ({low:.3f} to "
        f"{high:.3f}) | {said['kl']:.1f} | {seconds:.0f} |"
    )


def main() -> int:
    """Measure and write the page."""
    hush()
    folder, rows = Path(tempfile.mkdtemp()), []
    for name in METHODS:
        for rate in RATES.get(name, OFFLINE_RATES):
            rows.append(row(name, rate, folder))
            print(rows[-1], flush=True)
    command = ".venv/bin/python scripts/bench/ppo/methods_on_tales.py"
    PAGE.write_text(PAGE_TEXT.format(conditions=conditions(command), rows="\n".join(rows)))
    return 0


PAGE_TEXT = """# Methods on the quickstart's task

{conditions}

All start from the SFT model of the quickstart. PPO, RLOO and GRPO sample 2,560 completions against
its reward model, DPO and KTO read its training pairs once. One seed; three learning rates each, all
shown. True score (the hidden gold score, which none of them reads) and win rate against SFT on 512
prompts that no stage trained on, with the 95 % bootstrap interval; KL in nats per completion.

| method | learning rate | true score | win rate | KL | seconds |
|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
