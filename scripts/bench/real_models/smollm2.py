#!/usr/bin/env python3
"""SFT, reward model, PPO and DPO of a real chat model with LoRA, on real instructions.

    .venv/bin/python scripts/bench/real_models/smollm2.py --model FOLDER_OR_HUB_ID [--rows 1000]

Needs the folder of data beside the project. Not yet run whole: SFT, reward model and DPO ran on 16
rows. Prints the section of
docs/benchmarks/real-models.md. `--out FOLDER` keeps the runs, and a stage that is done there is not
run again.
"""

import argparse
import importlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.recipe.main import parse  # noqa: E402  the path above comes first
from recipes.lib.runs.files import read_jsonl, write_jsonl  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402

DATA = ROOT.parent / "shared/data"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BRIEF = f"{Path(__file__).parent / 'brief.py'}:brief"
LORA = {"use_peft": True, "lora_r": 16, "lora_alpha": 16, "lora_target_modules": "all-linear"}
COMMON = {"dtype": "float32", "bf16": False, "use_cpu": True, "save_strategy": "no", "seed": 1}
ROWS = (
    COMMON
    | LORA
    | {
        "num_train_epochs": 1,
        "max_length": 256,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_checkpointing": False,
        "warmup_steps": 0.1,
        "disable_tqdm": True,
    }
)
PPO = (
    COMMON
    | LORA
    | {
        "total_episodes": 512,
        "rollout_batch_size": 64,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "per_device_train_batch_size": 16,
        "sampling_batch_size": 64,
        "scoring_batch_size": 32,
        "max_prompt_length": 128,
        "max_completion_length": 48,
        "kl_coef": 0.05,
        "missing_eos_penalty": 1.0,
        "learning_rate": 1e-4,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
)
HELD_OUT = 100  # the last rows: no stage trains on them


def write_data(folder: Path, rows: int) -> None:
    """Instructions, pairs (polite, rude) and prompts, all as messages, parted alike."""
    said = read_jsonl(DATA / "sft/rasbt_instruct_messages.jsonl")
    pairs = read_jsonl(DATA / "preference/rasbt_polite.jsonl")
    both: list[dict[str, Any]] = []
    for told, pair in zip(said, pairs, strict=True):
        asked = told["messages"][:1]
        sides = {k: [{"role": "assistant", "content": pair[k]}] for k in ("chosen", "rejected")}
        assert told["messages"][1]["content"]
        assert pair["chosen"]
        both.append({"messages": told["messages"], "prompt": asked} | sides)
    parts = {"train": both[:-HELD_OUT][:rows], "test": both[-HELD_OUT:]}
    columns = {
        "sft": ("messages",),
        "pairs": ("prompt", "chosen", "rejected"),
        "prompts": ("prompt",),
    }
    for part, of_part in parts.items():
        for kind, names in columns.items():
            kept = [{name: row[name] for name in names} for row in of_part]
            write_jsonl(folder / f"{kind}_{part}.jsonl", kept)


def run(recipe: str, folder: Path, name: str, **values: Any) -> dict[str, Any]:
    """A recipe's summary, with its seconds; what is done is read."""
    out = folder / name
    if not (out / "summary.json").is_file():
        start = time.monotonic()
        asked = parse(recipe, [], values | {"output_dir": str(out), "overwrite": True})
        importlib.import_module(f"recipes.{recipe}").run(asked)
        (out / "took.json").write_text(json.dumps(time.monotonic() - start))
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return summary | {"took": json.loads((out / "took.json").read_text())}


def run_all(model: str, folder: Path, rows: int) -> dict[str, dict[str, Any]]:
    """All stages, each from the SFT run, and what each is worth on the prompts held out."""
    write_data(folder, rows)

    def data(kind: str) -> dict[str, str]:
        names = {"dataset_name": "train", "test_dataset_name": "test"}
        return {key: str(folder / f"{kind}_{part}.jsonl") for key, part in names.items()}

    sft, reward = str(folder / "sft"), str(folder / "reward")
    prompts = {"dataset_name": str(folder / "prompts_train.jsonl")}
    critic = {"critic": "adapter", "critic_model_name_or_path": reward}
    found = {
        "sft": run(
            "sft", folder, "sft", model_name_or_path=model, **ROWS, **data("sft"),
            learning_rate=2e-4, num_samples=0,
        ),
        "reward": run(
            "reward", folder, "reward", model_name_or_path=sft, **ROWS, **data("pairs"),
            learning_rate=1e-4, scoring_batch_size=16,
        ),
        "dpo": run(
            "dpo", folder, "dpo", model_name_or_path=sft, **ROWS, **data("pairs"),
            learning_rate=5e-5, beta=0.1,
        ),
        "ppo": run(
            "ppo", folder, "ppo", model_name_or_path=sft, **PPO, **prompts, **critic,
            reward_funcs=[reward],
        ),
        "brief": run(
            "ppo", folder, "brief", model_name_or_path=sft, **PPO, **prompts, critic="head",
            reward_funcs=[BRIEF],
        ),
    }  # fmt: skip
    for name, judge in (("dpo", reward), ("ppo", reward), ("brief", BRIEF)):
        found[f"evaluate {name}"] = run(
            "evaluate", folder, f"evaluate-{name}", run=str(folder / name), baseline=sft,
            judge=judge, dataset_name=str(folder / "prompts_test.jsonl"), dtype="float32",
            max_completion_length=48, batch_size=50, seed=1,
        )  # fmt: skip
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """One line a run: what it is worth beside the SFT run on the same prompts."""
    lines = [
        "| run | judge | SFT's score | its score | win rate (95 %) | KL, nats | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, judge in (("dpo", "reward model"), ("ppo", "reward model"), ("brief", "brief")):
        numbers = found[f"evaluate {name}"]
        low, high = numbers["win_rate_ci95"]
        cells = [
            {"dpo": "DPO", "ppo": "PPO", "brief": "PPO, brief"}[name],
            judge,
            f"{numbers['score_baseline']:.2f}",
            f"{numbers['score']:.2f}",
            f"{numbers['win_rate']:.2f} ({low:.2f} to {high:.2f})",
            f"{numbers['kl']:.1f}",
            f"{found[name]['took']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answers(folder: Path) -> str:
    """The first five prompts whose answers of SFT and PPO differ."""
    rows = read_jsonl(folder / "evaluate-ppo/samples.jsonl")
    lines = []
    for row in rows:
        asked, ours, theirs = (
            re.sub(r"\s+", " ", _text(row[name])).strip()
            for name in ("prompt", "completion", "completion_baseline")
        )
        if ours != theirs:
            lines.append(f"- **{asked}**\n  - SFT: {theirs}\n  - PPO: {ours}")
    return "\n".join(lines[:5])


def _text(said: Any) -> str:
    return said if isinstance(said, str) else " ".join(turn["content"] for turn in said)


def main() -> int:
    """Run what is not done and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default=HUB_ID, help="folder or Hub id")
    parser.add_argument("--rows", type=int, default=1000, help="of the data to train on")
    parser.add_argument("--out", type=Path, help="folder that keeps the runs")
    asked = parser.parse_args()
    hush()
    folder = asked.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    found = run_all(asked.model, folder, asked.rows)
    command = ".venv/bin/python scripts/bench/real_models/smollm2.py --model FOLDER"
    sft, reward = found["sft"], found["reward"]
    print(
        f"{conditions(command)}\n\n"
        f"SFT: test perplexity {sft['base_perplexity']:.2f} -> {sft['perplexity']:.2f}, "
        f"{sft['took']:.0f} s. Reward model: test accuracy {reward['accuracy']:.2f} on "
        f"{HELD_OUT} pairs, a bag of words {reward['accuracy_bag_of_words']:.2f}, "
        f"{reward['took']:.0f} s.\n\n{table(found)}\n\n{answers(folder)}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
