"""What `rlhf plan` says of a run, and what the run takes: a part of the GPU benchmark."""

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from scripts.bench.gpu.gpu_models import make, shape, texts, write_tokenizer
from scripts.bench.gpu.gpu_peak import DEVICE, GIB, Peak, train_alone

LORA_FLAGS = {"use_peft": True, "lora_r": 16, "lora_target_modules": "all-linear"}
REWARD = (
    "def score(completion_ids, **_):\n    return [float(len(set(ids))) for ids in completion_ids]\n"
)
PAIRED: dict[str, Any] = {"per_device_train_batch_size": 4, "max_steps": 2}
OF_RECIPES: dict[str, dict[str, Any]] = {
    "sft": PAIRED | LORA_FLAGS,
    "sft, 4 bits": PAIRED | LORA_FLAGS | {"load_in_4bit": True, "use_bnb_nested_quant": True},
    "sft, full": PAIRED,
    "reward": PAIRED | LORA_FLAGS | {"test_fraction": 4, "skip_check": True},  # rows
    "ppo": LORA_FLAGS
    | {
        "total_episodes": 32,
        "rollout_batch_size": 16,
        "per_device_train_batch_size": 4,
        "scoring_batch_size": 4,
        "critic": "adapter",
    },
}


def rows_for(recipe: str, config: Any, half: int) -> list[dict[str, str]]:
    """Rows that fill the greatest length; chosen and rejected differ in their last word."""
    halves = [row["prompt"] for row in texts(config, 32, half)]
    if recipe == "ppo":
        return [{"prompt": text} for text in halves]
    if recipe == "sft":
        return [{"prompt": text, "completion": " " + text} for text in halves]
    ends = [" ".join(text.split()[:-1]) for text in halves]
    return [
        {"prompt": text, "chosen": f" {end} w5", "rejected": f" {end} w6"}
        for text, end in zip(halves, ends, strict=True)
    ]


def plan(size: str, case: str) -> dict[str, Any]:
    """The plan of a recipe's run, and the peaks of that run. GiB."""
    from recipes.lib.plan.planner import plan_of
    from recipes.lib.plan.target import Target
    from recipes.lib.recipe.main import parse

    recipe, half = case.split(",")[0], 512 if size == "full" else 16
    config = shape("Qwen/Qwen3-0.6B", size == "tiny")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tokenizer(config, folder / "base")
        make(config, folder / "base", "cpu").save_pretrained(folder / "base")
        (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
        rows = rows_for(recipe, config, half)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
        values = OF_RECIPES[case] | {
            "model_name_or_path": str(folder / "base"),
            "dataset_name": str(folder / "rows.jsonl"),
            "output_dir": str(folder / "run"),
            "dtype": "bfloat16",
            "bf16": True,
            "use_cpu": DEVICE == "cpu",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        if recipe == "ppo":
            values |= {"reward_funcs": f"{folder}/rewards.py:score"}
            values |= {"max_prompt_length": half, "max_completion_length": half}
        else:
            values |= {"max_length": 2 * half + 2}
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        asked = parse(recipe, words)
        planned = plan_of(asked, Target(autocast=torch.bfloat16, has_test=recipe == "reward"))
        train_alone()
        peak = Peak()
        with peak.watched():
            importlib.import_module(f"recipes.{recipe}").run(asked)
    tensors = max(phase.allocated for phase in planned.phases) / GIB
    said = {"tensors": tensors, "card": planned.peak / GIB, "phase": planned.fullest.name}
    return {"planned": said, "memory": peak.numbers()}
