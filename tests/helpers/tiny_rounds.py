"""YAMLs of `rlhf rounds` for the tiny model and the judge that likes long texts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from recipes.lib.runs.files import read_jsonl

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
TIMES = ("id", "created_at", "seconds")


def write_configs(folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """Write one YAML for each step into configs/, with changes by step.

    Args:
        folder: Of `prepare`.
        changes: Keys by step; None takes one away.

    Returns:
        Keys of `rlhf rounds`.
    """
    model = str(folder / "model")
    short = {"max_completion_length": 6}
    batches = QUIET | {"per_device_train_batch_size": 4, "save_steps": 1, "save_total_limit": 1}
    steps: dict[str, dict[str, Any]] = {
        "select": short
        | {"action": "select", "seed": 1, "repeat": 0.25}
        | {"dataset_name": str(folder / "prompts.jsonl")},
        "simulated": {"action": "simulate", "judge": f"{folder / 'judge.py'}:judge", "seed": 1}
        | {"rater_temperature": 5.0},
        "reward": batches
        | {"model_name_or_path": model, "max_steps": 2, "learning_rate": 1e-3}
        | {"skip_check": True, "seed": 1},
        "ppo": batches
        | short
        | {"dataset_name": str(folder / "prompts.jsonl"), "seed": 1}
        | {"total_episodes": 16, "rollout_batch_size": 8, "num_ppo_epochs": 1}
        | {"num_mini_batches": 2, "learning_rate": 1e-2, "skip_check": True},
        "evaluate": short | {"seed": 1},
    }
    (folder / "configs").mkdir(exist_ok=True)
    for name in {*steps, *changes}:
        keys = steps.get(name, {}) | changes.get(name, {})
        kept = {key: value for key, value in keys.items() if value is not None}
        text = f"# Step: {name}.\n{yaml.safe_dump(kept)}"
        (folder / "configs" / f"{name}.yaml").write_text(text)
    rounds: dict[str, Any] = {"model_name_or_path": model, "configs": str(folder / "configs")}
    rounds |= {"num_rounds": 3, "num_answers": 20, "gate_answers": 8}
    return rounds | {"output_dir": str(folder / "rounds")}


def outcome(root: Path) -> dict[str, str]:
    """Hashes of what rounds have to do with nothing but their configuration, by file."""
    found = {}
    for file in sorted(root.glob("round-*/**/*")):
        name = str(file.relative_to(root))
        if file.name == "model.safetensors" and file.parent.name == "final":
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name == "answers.jsonl":  # the ids are made with the time
            rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(file)]
            found[name] = json.dumps(rows)
        elif file.name == "items.jsonl":
            found[name] = file.read_text()
    for file in (*sorted(root.glob("round-*/summary.json")), root / "summary.json"):
        found[str(file.relative_to(root))] = file.read_text()
    return {name: text.replace(str(root), "rounds") for name, text in found.items()}
