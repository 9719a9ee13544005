"""Signals that ask a training to stop: it is cut short only where nothing is lost by it.

SIGTERM (an end that is announced), SIGINT (Ctrl-C) and SIGUSR1 (a scheduler's warning) are the
same here. A second Ctrl-C stops at once. Handlers belong to the process, and so does what this
module remembers.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

EXIT_CODE = 75  # of sysexits.h: a failure that goes away when it is tried again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop(BaseException):
    """Cuts a section short. No Exception, because reward functions may catch those."""


class Stopped(Exception):
    """A training has stopped because a signal asked for it; the text tells where it stands."""


@dataclass
class _Asked:
    """Whether somebody listens, what was asked, and whether the present section may be cut."""

    listens: bool = False
    name: str = ""
    armed: bool = False


_asked = _Asked()


@contextmanager
def listening() -> Iterator[None]:
    """Take SIGTERM, SIGINT and SIGUSR1 as the wish to stop; only the main thread can."""
    if threading.current_thread() is not threading.main_thread() or _asked.listens:
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    _asked.listens, _asked.name, _asked.armed = True, "", False
    try:
        yield
    finally:
        _asked.listens = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """A section that a signal cuts short.

    Raises:
        Stop: A signal came, in it or before it.
    """
    if not _asked.listens or _asked.armed:
        yield
        return
    _asked.armed = True
    try:
        if _asked.name:
            raise Stop(_asked.name)
        yield
    finally:
        _asked.armed = False


def disarm() -> None:
    """From here on, the present section is not cut short."""
    _asked.armed = False


def caught() -> str:
    """Name of the signal that came, or nothing."""
    return _asked.name if _asked.listens else ""


def _handle(number: int, frame: Any) -> None:
    again = bool(_asked.name)
    _asked.name = signal.Signals(number).name
    if again and number == signal.SIGINT:
        raise KeyboardInterrupt
    if not again and os.environ.get("RANK", "0") == "0":
        # No print: the signal may have come in the middle of one.
        told = f"\n{_asked.name}: saving where it stands; Ctrl-C again stops at once\n"
        os.write(2, told.encode())
    if _asked.armed:
        _asked.armed = False
        raise Stop(_asked.name)
