"""How a run is started: on how many processes, and what they share out among them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.lib.config.shipped_configs import FOLDER, find_configs
from recipes.lib.distributed.processes import num_processes
from recipes.lib.errors import UserError

TRUE = ("1", "true", "yes", "y", "on", "t")
LAUNCH_TYPES = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED")  # of accelerate, known here
SHARDED = ("fsdp1", "fsdp2", "zero1", "zero2", "zero3")  # kinds in which no process holds it all


@dataclass(frozen=True)
class Launch:
    """How a run was started.

    Args:
        kind: "single", "ddp", "fsdp1", "fsdp2", or "zero" with its stage.
        num_processes: How many processes, on all machines.
        on_cpu: Whether they compute on the CPU.
        num_machines: How many machines they run on, as many on each.
    """

    kind: str = "single"
    num_processes: int = 1
    on_cpu: bool = False
    num_machines: int = 1

    @classmethod
    def here(cls, training: Any = None) -> Launch:
        """How this process was started.

        Args:
            training: A TrainingArguments, which may ask for FSDP or DeepSpeed by itself.

        Returns:
            The launch.
        """
        number = num_processes()
        machines = max(number // int(os.environ.get("LOCAL_WORLD_SIZE", number)), 1)
        on_cpu = _is_true("ACCELERATE_USE_CPU") or bool(getattr(training, "use_cpu", False))
        if getattr(training, "deepspeed", None) or _is_true("ACCELERATE_USE_DEEPSPEED"):
            return cls(f"zero{_zero_stage(training)}", number, on_cpu, machines)
        if getattr(training, "fsdp", None) or _is_true("ACCELERATE_USE_FSDP"):
            return cls(f"fsdp{_fsdp_version(training)}", number, on_cpu, machines)
        return cls("ddp" if number > 1 else "single", number, on_cpu, machines)

    @classmethod
    def of(cls, config: Mapping[str, Any], number: int | None = None) -> Launch:
        """What an accelerate configuration starts.

        Args:
            config: Its content.
            number: Processes that `--num_processes` asks for.

        Returns:
            The launch.
        """
        number = number or int(config.get("num_processes", 1))
        machines = int(config.get("num_machines") or 1)
        named, on_cpu = str(config.get("distributed_type", "NO")), bool(config.get("use_cpu"))
        if named == "DEEPSPEED":
            stage = (config.get("deepspeed_config") or {}).get("zero_stage", 2)
            return cls(f"zero{stage}", number, on_cpu, machines)
        if named == "FSDP":
            version = (config.get("fsdp_config") or {}).get("fsdp_version", 1)
            return cls(f"fsdp{version}", number, on_cpu, machines)
        is_ddp = named != "NO" and number > 1
        return cls("ddp" if is_ddp else "single", number, on_cpu, machines)

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"kind": self.kind, "num_processes": self.num_processes}

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the whole state of the training."""
        return self.kind in SHARDED

    @property
    def shards_weights(self) -> int:
        """Among how many the weights are divided."""
        return self.num_processes if self.is_fsdp or self.kind == "zero3" else 1

    @property
    def shards_optimizer(self) -> int:
        """Among how many gradients and the states of the optimizer are divided."""
        return self.num_processes if self.is_sharded else 1

    @property
    def is_fsdp(self) -> bool:
        """Whether PyTorch's FSDP divides the model, in either version."""
        return self.kind.startswith("fsdp")

    def __str__(self) -> str:
        """In words."""
        if self.kind == "single":
            return "one process"
        name = self.kind.upper().replace("ZERO", "ZeRO-")
        return f"{name}, {self.num_processes} processes"


def read_launch(name: str | None, num_processes: int | None) -> Launch:
    """What accelerate would start.

    Args:
        name: Name of a file in configs/accelerate, or a path; None for one process, or DDP.
        num_processes: Instead of the file's.

    Returns:
        The launch.

    Raises:
        UserError: There is no such file, or it says nothing that is known here.
    """
    from recipes.lib.config.strict_yaml import read_yaml

    if num_processes is not None and num_processes < 1:
        raise UserError(f"num_processes={num_processes}: must be at least 1.")
    if name is None:
        return Launch.of({"distributed_type": "MULTI_GPU"}, num_processes)
    values = read_yaml(find_accelerate_config(name)).values
    kind = str(values.get("distributed_type", "NO"))
    launch = Launch.of(values, num_processes)
    if kind not in LAUNCH_TYPES or launch.kind in ("zero0", "zero1"):
        shown = f"{kind} with zero_stage {launch.kind[-1]}" if kind == "DEEPSPEED" else kind
        raise UserError(
            f"accelerate_config={name}: its distributed_type {shown} cannot be planned; known are "
            "NO, MULTI_GPU, FSDP, and DEEPSPEED with zero_stage 2 or 3."
        )
    return launch


def find_accelerate_config(name: str) -> Path:
    """The file of an accelerate configuration.

    Args:
        name: A file, or the name of one that comes with the project, such as ddp.

    Returns:
        Its path.

    Raises:
        UserError: There is none.
    """
    if Path(name).is_file():
        return Path(name)
    known = find_configs(FOLDER / "accelerate")
    if (short := name.removesuffix(".yaml")) in known:
        return known[short]
    there = f"; there are {', '.join(known)}, or name a file" if known else "; name a file"
    raise UserError(f"accelerate_config={name}: there is no such configuration{there}.")


def _zero_stage(training: Any) -> int:
    given = getattr(training, "deepspeed", None) or os.environ.get(
        "ACCELERATE_DEEPSPEED_CONFIG_FILE"
    )
    if isinstance(given, str) and Path(given).is_file():
        given = json.loads(Path(given).read_text(encoding="utf-8"))
    if isinstance(given, Mapping):
        return int((given.get("zero_optimization") or {}).get("stage", 0))
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))


def _fsdp_version(training: Any) -> int:
    if getattr(training, "fsdp", None):
        return int((training.fsdp_config or {}).get("version", 2))
    return int(os.environ.get("FSDP_VERSION", "1"))


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in TRUE
