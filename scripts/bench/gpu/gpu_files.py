"""The shipped configurations for cards, in the order in which the GPU benchmark runs them."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
CARDS = (  # each behind the runs that it starts from
    "sft/qwen3-1.7b-8gb",
    "reward/qwen3-1.7b-8gb",
    "ppo/qwen3-1.7b-8gb",
    "sft/llama-3.1-8b-12gb",
    "reward/llama-3.1-8b-12gb",
    "ppo/llama-3.1-8b-12gb",
    "sft/qwen3-4b-12gb",
    "dpo/qwen3-4b-12gb",
    "sft/qwen3-8b-16gb",
    "kto/smollm3-3b-16gb",
    "sft/llama-3.2-1b-24gb",
    "sft/qwen3-0.6b-t4",
)


def read_file(name: str) -> tuple[dict[str, Any], int]:
    """Values of a configuration, and the GB of its card."""
    text = (ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^# Card: (\d+) GB", text, re.MULTILINE)
    assert found is not None
    return yaml.safe_load(text), int(found[1])


def base_of(values: dict[str, Any]) -> str:
    """Hub id below a configuration, through the runs that it starts from."""
    while (name := values["model_name_or_path"]).startswith("runs/"):
        values, _ = read_file(name.removeprefix("runs/"))
    return str(name)
