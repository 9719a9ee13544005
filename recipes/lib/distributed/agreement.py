"""Work that all processes finish or all leave, so that none waits for another one for ever.

What is done inside has no collective call, so a process may leave it at any time: because of a
signal, or because it failed. Each then says how it fared and looks, without being blocked, for what
the others say; so a signal is heard while it waits, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import distributed

from recipes.lib.distributed.signals import Stop, interruptible
from recipes.lib.errors import UserError, sentence

DONE, LEFT, FAILED = 0, 1, 2
PAUSE = 0.01  # seconds between two looks


@contextmanager
def agreed_section() -> Iterator[None]:
    """A section without collective calls, which has to be the same on every process.

    Raises:
        Stop: A signal came to one of the processes; it is raised on each of them.
        UserError: Another process failed, with what it says of it; that one raises its failure.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return
    error: BaseException | None = None
    vote = DONE
    try:
        with interruptible():
            yield
    except Stop as stop:
        error, vote = stop, LEFT
    except Exception as failed:
        error, vote = failed, FAILED
    worst = _worst(vote)
    if error is None and worst == LEFT:
        error = Stop("a signal to another process")
    if worst == FAILED:
        why = _reason(error if vote == FAILED else None)
        error = error if vote == FAILED else UserError(f"{why}.")
    if error is not None:
        error.all_processes_know = True  # type: ignore[attr-defined]
        raise error


def _reason(failure: BaseException | None) -> str:
    """Why the first process failed that did; told to all, because one of them speaks for all."""
    own = ""
    if failure is not None:
        own = sentence(failure) or f"{type(failure).__name__}: {failure}"
    reasons: list[str] = gather_object([own])
    return next(filter(None, reasons)).rstrip(".")


def is_agreed(error: BaseException) -> bool:
    """Whether all processes have left their work because of an exception, at the same place."""
    return getattr(error, "all_processes_know", False)


def _worst(vote: int) -> int:
    votes = torch.tensor(vote, device=PartialState().device)
    work = distributed.all_reduce(votes, distributed.ReduceOp.MAX, async_op=True)
    while not work.is_completed():
        time.sleep(PAUSE)
    work.wait()  # raises if a process died
    return int(votes.item())
