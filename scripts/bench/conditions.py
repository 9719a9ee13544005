"""Under which conditions a benchmark ran: the lines above every table in docs/benchmarks."""

import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path

from recipes.lib.runs.lineage import commit

SHOWN = ("torch", "transformers", "trl", "peft", "accelerate")


def conditions(command: str) -> str:
    """Describe command, hardware, versions, commit and date.

    Args:
        command: What a reader types to run the benchmark again.

    Returns:
        A Markdown list.
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
    return "\n".join(
        [
            f"- command: `{command}`",
            f"- hardware: {_processor()}, {os.cpu_count()} cores, {_card()}",
            f"- versions: Python {platform.python_version()}, {versions}",
            f"- commit {commit()}, {date.today().isoformat()}",
        ]
    )


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _card() -> str:
    import torch

    return f"one {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "no GPU"
