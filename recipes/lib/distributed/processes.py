"""The processes of a run: which one this is, how many there are, and how they share a model."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from recipes.lib.errors import UserError

Result = TypeVar("Result")
PATIENCE = 5.0  # seconds that the first process gets to tell a mistake, which is most often shared


def is_main_process() -> bool:
    """Whether this process writes and prints; true where no launcher set a rank."""
    return int(os.environ.get("RANK", "0")) == 0


def may_report() -> bool:
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
    except OSError as error:  # of others nothing is known
        return isinstance(error, ConnectionRefusedError)
    return False


def num_processes() -> int:
    """How many processes the launcher started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def broadcast_from_main(look: Callable[[], Result]) -> Result:
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


def choose_device() -> None:
    """Let several processes compute on the CPU where no accelerator is seen, and one of them speak.

    Without this accelerate would take each of them for a run of its own.
    """
    if not is_main_process():
        os.environ.setdefault("TQDM_DISABLE", "1")  # before tqdm is imported
    if num_processes() > 1 and "ACCELERATE_USE_CPU" not in os.environ:
        import torch

        if not torch.accelerator.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"
