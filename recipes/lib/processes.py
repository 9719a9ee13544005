"""The processes of a run: which one this is, how many there are, and how they share a model."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recipes.lib.errors import UserError

Result = TypeVar("Result")
TRUE = ("1", "true", "yes", "y", "on", "t")
PATIENCE = 5.0  # seconds that the first process gets to tell a mistake, which is most often shared
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

    kind: str
    num_processes: int
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

    def told(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"kind": self.kind, "num_processes": self.num_processes}

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the whole state of the training."""
        return self.kind in SHARDED


def is_main_process() -> bool:
    """Whether this process writes and prints; true where no launcher set a rank."""
    return int(os.environ.get("RANK", "0")) == 0


def may_tell() -> bool:
    """Whether this process prints its mistake: it waits, because most often all have the same one.

    The first process prints at once, and its end makes its launcher end the others of its machine.
    Another machine sees that this launcher is gone. A mistake of one machine alone is printed there
    by its first process, whose end is that of the others.

    Returns:
        False where the first process has told its mistake.
    """
    if is_main_process():
        return True
    here, local = (int(os.environ.get(name, "0")) for name in ("GROUP_RANK", "LOCAL_RANK"))
    rounds = 1 if here == 0 else 2 if local == 0 else 3
    end = time.monotonic() + rounds * PATIENCE
    while time.monotonic() < end:
        if here > 0 and _first_machine_has_ended():
            return False
        time.sleep(PATIENCE / 10)
    return True


def _first_machine_has_ended() -> bool:
    # Its launcher holds the store that all processes meet at.
    place = (os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0")))
    try:
        socket.create_connection(place, timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # nothing is known
        return False
    return False


def num_processes() -> int:
    """How many processes the launcher started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_main_process() -> None:
    """Let all processes come to the same place."""
    if num_processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def from_main(look: Callable[[], Result]) -> Result:
    """Let the main process look at something, such as files, and tell the others what it saw.

    So it is read once, and no two processes go different ways because they saw different things.

    Args:
        look: Looks, and returns something small that can be sent; all processes come here with it.

    Returns:
        What it returned on the main process.

    Raises:
        UserError: It raised it there, or failed otherwise; every process raises the same.
    """
    if num_processes() == 1:
        return look()
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if is_main_process():
        try:
            found[0] = look()
        except UserError as error:
            found[1] = str(error)
        except Exception as error:  # the others wait
            found[1] = f"the main process failed ({type(error).__name__}: {error})."
    broadcast_object_list(found)
    if found[1] is not None:
        raise UserError(found[1])
    result: Result = found[0]
    return result


def use_what_is_there() -> None:
    """Let several processes compute on the CPU where no accelerator is seen, and one of them speak.

    Without this accelerate would take each of them for a run of its own.
    """
    if not is_main_process():
        os.environ.setdefault("TQDM_DISABLE", "1")  # before tqdm is imported
    if num_processes() > 1 and "ACCELERATE_USE_CPU" not in os.environ:
        import torch

        if not torch.accelerator.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"


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
