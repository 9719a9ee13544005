"""What the tests of recipes have in common: settings of short runs, rows on disk, LoRA."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.lib.data.problems import PLACE

FAST = {
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "seed": 1,
}
LORA = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 4}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as their file has them, without the column of their places."""
    return [{name: value for name, value in row.items() if name != PLACE} for row in rows]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below a folder with its time and content."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
        if "__pycache__" not in str(path)
    }


def flags(values: dict[str, Any]) -> list[str]:
    """The words of a command line for a tiny model in `model` and a run in `run`."""
    pairs = {"model_name_or_path": "model", "output_dir": "run"} | FAST | values
    flat: list[str] = []
    for key, value in pairs.items():
        given = value if isinstance(value, list) else [value]
        flat += [f"--{key}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in given)]
    return flat
