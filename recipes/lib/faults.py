"""Batches that training could not use, kept to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def dump(batches: Sequence[dict[str, Any]], folder: Path, step: int, process: int) -> Path:
    """Write the tensors of a step's micro-batches.

    Args:
        batches: The micro-batches of this process.
        folder: Where to.
        step: Number of the step.
        process: Number of the process.

    Returns:
        The file: safetensors, with names such as `0.input_ids`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step}-process-{process}.safetensors"
    tensors = {
        f"{i}.{name}": value.detach().cpu().contiguous().clone()
        for i, batch in enumerate(batches)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    save_file(tensors, path)
    return path
