#!/usr/bin/env python3
"""Which critic learns best: a head, an adapter, a model; from zero or from the reward model.

On a task with a known optimum, on stories260K and on the quickstart's task, whole models and LoRA,
five seeds each: `.venv/bin/python scripts/bench/ppo/critics.py`, after ./scripts/quickstart and
with ../shared beside the project. Writes docs/benchmarks/critics.md. An hour and a half on one
core; finished runs are kept in runs/critics.json, so that a stopped bench goes on.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from datasets import Dataset  # noqa: E402

from recipes import evaluate, ppo, reward  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl, write_json  # noqa: E402
from recipes.lib.runs.lineage import commit  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.ppo.exact_methods import train as train_exactly  # noqa: E402
from scripts.bench.ppo.exact_tasks import find  # noqa: E402

SHARED = ROOT.parent / "shared"
QUICKSTART = ROOT / "runs/quickstart"
KEPT = ROOT / "runs/critics.json"
PAGE = ROOT / "docs/benchmarks/critics.md"
SEEDS = (1, 2, 3, 4, 5)
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "dtype": "float32",
    "num_mini_batches": 4,
    "num_ppo_epochs": 2,
}
LORA = {"use_peft": True, "lora_r": 16, "lora_target_modules": "all-linear"}
TALES = COMMON | {
    "model_name_or_path": str(QUICKSTART / "sft"),
    "dataset_name": str(QUICKSTART / "base/data/ppo_prompts.jsonl"),
    "total_episodes": 2560,
    "rollout_batch_size": 256,
    "sampling_batch_size": 256,
    "scoring_batch_size": 64,
    "per_device_train_batch_size": 64,
    "max_completion_length": 72,
    "kl_coef": 0.05,
    "lr_scheduler_type": "linear",
}
STORIES = COMMON | {
    "model_name_or_path": str(SHARED / "models/stories260K"),
    "dataset_name": str(SHARED / "data/prompt/tinystories.jsonl"),
    "reward_funcs": [f"{ROOT / 'scripts/bench/happy_words.py'}:happy_words"],
    "total_episodes": 1536,
    "rollout_batch_size": 128,
    "per_device_train_batch_size": 32,
    "sampling_batch_size": 128,
    "max_completion_length": 64,
    "kl_coef": 0.07,
}
RATE, LORA_RATE = 3e-4, 1e-3
TASKS = ("exact task", "stories260K", "quickstart")
MODELS = {"stories260K": STORIES, "quickstart": TALES}
AT = {"stories260K": 2.0, "quickstart": 1.4}  # nats per completion that every run passes


def on_exact(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Optimality on the exact task."""
    task = find(str(SHARED / "bench/exact_task.py"))
    given = {"learning_rate": 2e-3, "num_ppo_epochs": 8} | settings
    result = train_exactly(task, "ppo", 10_240, seed, given)
    return {"optimality": result["optimality"], "kl": result["kl"], "seconds": result["seconds"]}


def curve(run: str) -> list[list[float]]:
    """KL and score of every rollout."""
    rows = read_jsonl(Path(run) / "metrics.jsonl")
    kept = [row for row in rows if "objective/kl" in row]
    return [[row["objective/kl"], row["objective/scores"]] for row in kept]


def on_stories(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Score and KL of the last rollouts on stories260K."""
    with tempfile.TemporaryDirectory() as folder:
        summary = ppo.run(
            parse("ppo", [], STORIES | settings | {"seed": seed, "output_dir": f"{folder}/run"})
        )
        points = curve(f"{folder}/run")
    scores, kl = summary["scores"], summary["kl"]
    return {
        "score": scores,
        "kl": kl,
        "objective": scores - STORIES["kl_coef"] * kl,
        "seconds": summary["seconds"],
        "curve": points,
    }


def on_tales(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """True score and KL on fresh prompts of the quickstart's task."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/run"
        summary = ppo.run(parse("ppo", [], TALES | settings | {"seed": seed, "output_dir": out}))
        told = {
            "run": out,
            "baseline": str(QUICKSTART / "sft"),
            "dataset_name": str(QUICKSTART / "base/data/eval_prompts.jsonl"),
            "output_dir": f"{folder}/evaluate",
        }
        config = ["--config", str(ROOT / "configs/quickstart/evaluate.yaml")]
        said = evaluate.run(parse("evaluate", config, told))
        points = curve(out)
    objective = summary["scores"] - TALES["kl_coef"] * summary["kl"]
    return {
        "true score": said["score"],
        "kl": said["kl"],
        "objective": objective,
        "seconds": summary["seconds"],
        "curve": points,
    }


def reward_adapter(folder: Path) -> str:
    """Train the reward adapter that the LoRA runs on the quickstart's task share the base with."""
    out = str(folder / "reward_adapter")
    config = ["--config", str(ROOT / "configs/quickstart/reward.yaml")]
    told = LORA | {
        "model_name_or_path": str(QUICKSTART / "sft"),
        "dataset_name": str(QUICKSTART / "feedback"),
        "output_dir": out,
        "overwrite": True,
        "learning_rate": LORA_RATE,
        "disable_tqdm": True,
    }
    reward.run(parse("reward", config, told))
    return out


def rows(adapter: str) -> list[tuple[str, str, Callable[..., Any], dict[str, Any]]]:
    """What is run: task, critic, function, settings."""
    whole = {"reward_funcs": [str(QUICKSTART / "reward")], "learning_rate": RATE}
    light = LORA | {"reward_funcs": [adapter], "learning_rate": LORA_RATE}
    begun = {"critic_model_name_or_path": str(QUICKSTART / "reward")}
    exact, stories, tales = TASKS
    kinds = ({"critic": name} for name in ("head", "model"))
    made: list[tuple[str, str, Callable[..., Any], dict[str, Any]]] = []
    for kind in kinds:
        name = kind["critic"]
        made += [
            (exact, name, on_exact, kind),
            (stories, name, on_stories, kind | {"learning_rate": RATE}),
            (tales, name, on_tales, whole | kind),
        ]
    made.append((tales, "model from the reward model", on_tales, whole | kind | begun))
    for name in ("head", "adapter"):
        kind = {"critic": name}
        made += [
            (exact, f"{name}, LoRA", on_exact, kind | {"lora": 16}),
            (stories, f"{name}, LoRA", on_stories, LORA | kind | {"learning_rate": LORA_RATE}),
            (tales, f"{name}, LoRA", on_tales, light | kind),
        ]
    begun = {"critic_model_name_or_path": adapter}
    made.append((tales, "adapter from the reward adapter, LoRA", on_tales, light | kind | begun))
    return sorted(made, key=lambda row: TASKS.index(row[0]))


def at_equal_kl(points: list[list[float]], kl: float) -> float:
    """Score where a run's curve first passes a KL, between two rollouts; NaN if it does not."""
    for (before, low), (after, high) in pairwise(points):
        if before < kl <= after:
            return low + (high - low) * (kl - before) / (after - before)
    return float("nan")


def own_mebibytes(recipe_values: dict[str, Any]) -> float:
    """Weights, gradients and moments of Adam that the critic adds, fp32."""
    config = parse("ppo", [], recipe_values | {"output_dir": tempfile.mkdtemp()})
    prompts = Dataset.from_list([{"prompt": "a"}])
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = ppo.make_trainer(config, prompts, None)
    return sum(p.numel() for p in trainer.actor_critic.critic_parameters()) * 16 / 2**20


def measured(kept: dict[str, Any], adapter: str) -> dict[str, Any]:
    """Run what is not in the record yet."""
    for task, critic, function, settings in rows(adapter):
        for seed in SEEDS:
            key = f"{task} | {critic} | {seed}"
            if key not in kept["runs"]:
                with contextlib.redirect_stdout(io.StringIO()):
                    kept["runs"][key] = function(settings, seed)
                write_json(KEPT, kept)
            told = {k: v for k, v in kept["runs"][key].items() if k != "curve"}
            print(key, told, flush=True)
    return kept


def table(task: str, kept: dict[str, Any], adapter: str) -> str:
    """The rows of a task, over seeds."""
    lines: list[str] = []
    for name, critic, _, settings in rows(adapter):
        if name != task:
            continue
        results = [dict(kept["runs"][f"{task} | {critic} | {seed}"]) for seed in SEEDS]
        for result in results:
            points = result.pop("curve", None)
            if points is not None:
                result[f"score at {AT[task]:g} nats"] = at_equal_kl(points, AT[task])
        names = list(results[0])
        cells = [
            f"{mean(r[n] for r in results):.3g} +- {stdev(r[n] for r in results):.2g}"
            for n in names
        ]
        if task in MODELS:
            names.append("critic's own MiB")
            cells.append(f"{own_mebibytes(MODELS[task] | settings):.2f}")
        lines = lines or [f"| critic | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines.append(f"| {critic} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure what is not measured yet, and write the page; `--page` only writes it."""
    hush()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    if kept.get("commit") != commit() and "--page" not in sys.argv:
        kept = {"commit": commit(), "runs": {}}
    adapter = str(QUICKSTART.parent / "critics/reward_adapter")
    if not Path(adapter, "summary.json").is_file():
        adapter = reward_adapter(Path(adapter).parent)
    if "--page" not in sys.argv:
        kept = measured(kept, adapter)
    told = "\n\n".join(f"## {task}\n\n{table(task, kept, adapter)}" for task in TASKS)
    command = ".venv/bin/python scripts/bench/ppo/critics.py"
    page = PAGE_TEXT.format(conditions=conditions(command), tables=told, commit=kept["commit"])
    PAGE.write_text(page, encoding="utf-8")
    return 0


PAGE_TEXT = """# Critics

{conditions}; the runs are of commit {commit}

PPO with each critic, five seeds, mean and standard deviation; KL in nats per completion, seconds of
one thread beside other work. `score` is that of the last rollouts, `true score` is on fresh
prompts. The objective is score - kl_coef * KL of the last rollouts, as the policy sees it; the
score at equal KL is read off the rollouts on the way, where a run first passes that KL. `head`
reads the policy's trunk, `adapter` and `model` have one of their own; they begin with values of 0
unless it says otherwise. LoRA is of rank 16 on every layer. The last column is what the critic adds
in weights, gradients and moments of Adam.

{tables}

What follows for the default: under LoRA `adapter`, which ends higher on both language models and
costs one more adapter; without LoRA `head`, because a model of its own is a second model to train
and to store. Where memory and time allow it, `model` is the better choice there, too.
"""


if __name__ == "__main__":
    raise SystemExit(main())
