"""How many processes a run has and what they share out, from accelerate's configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.processes import Launch as Started

FOLDER = Path(__file__).parents[3] / "configs" / "accelerate"
ALONE = ("NO", "MULTI_CPU", "MULTI_GPU")


@dataclass(frozen=True)
class Launch:
    """The processes of a run.

    Args:
        kind: one, ddp, fsdp, zero2 or zero3.
        num_processes: How many.
    """

    kind: str = "one"
    num_processes: int = 1

    @property
    def shards_weights(self) -> int:
        """Among how many the weights are divided."""
        return self.num_processes if self.kind in ("fsdp", "zero3") else 1

    @property
    def shards_optimizer(self) -> int:
        """Among how many gradients and the states of the optimizer are divided."""
        return self.num_processes if self.kind in ("fsdp", "zero2", "zero3") else 1

    def __str__(self) -> str:
        """In words."""
        names = {"ddp": "DDP", "fsdp": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
        if self.kind == "one":
            return "one process"
        return f"{names[self.kind]}, {self.num_processes} processes"


def read_launch(name: str | None, num_processes: int | None) -> Launch:
    """Read what accelerate would start.

    Args:
        name: Name of a file in configs/accelerate, or a path; None for one process, or DDP.
        num_processes: Instead of the file's.

    Returns:
        The launch.

    Raises:
        UserError: There is no such file, or it says nothing that is known here.
    """
    if num_processes is not None and num_processes < 1:
        raise UserError(f"num_processes={num_processes}: must be at least 1.")
    if name is None:
        return _simple(num_processes or 1)
    values = _read(name)
    number = num_processes or int(values.get("num_processes") or 1)
    kind = str(values.get("distributed_type", "NO")).upper()
    if kind in ALONE:
        return _simple(number)
    if kind == "FSDP":
        return Launch("fsdp", number)
    stage = (values.get("deepspeed_config") or {}).get("zero_stage")
    if kind == "DEEPSPEED" and stage in (2, 3):
        return Launch(f"zero{stage}", number)
    shown = f"{kind} with zero_stage {stage}" if kind == "DEEPSPEED" else kind
    raise UserError(
        f"accelerate_config={name}: its distributed_type {shown} cannot be planned; known are NO, "
        "MULTI_GPU, FSDP, and DEEPSPEED with zero_stage 2 or 3."
    )


def read_started(name: str | None, num_processes: int | None) -> Started:
    """The same launch as a run sees it at its start.

    Args:
        name: Name of a file in configs/accelerate, or a path; None for one process, or DDP.
        num_processes: Instead of the file's.

    Returns:
        The launch, with FSDP's version, and whether it is on the CPU.
    """
    values = {"distributed_type": "MULTI_GPU"} if name is None else _read(name)
    return Started.of(values, num_processes)


def current_launch(training: Any) -> Launch:
    """What this process was started as."""
    number = int(training.world_size)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return Launch("fsdp", number)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return Launch("zero3" if stage == "3" else "zero2", number)
    return _simple(number)


def _simple(number: int) -> Launch:
    return Launch("ddp" if number > 1 else "one", number)


def _read(name: str) -> dict[str, Any]:
    from recipes.lib.strict_yaml import read_yaml

    path = Path(name)
    if not path.is_file():
        path = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        remedy = f"known are {known}, or name a file" if known else "name a file"
        raise UserError(f"accelerate_config={name}: there is no such configuration; {remedy}.")
    return dict(read_yaml(path).values)
