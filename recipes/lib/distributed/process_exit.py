"""The way out of a process that computed together with others.

A worker thread of gloo drops the tensors of a collective call after that has returned. If this is
their last use and Python is being taken down by then, the thread is ended while it asks for
Python's lock in a destructor: the run is done, and its process aborts with exit code 134.
destroy_process_group() ends those threads where nobody else holds the group, but torch does, in
default arguments of torch.distributed.nn.functional. So such a process is not taken down.
"""

import atexit
import os
import sys
from contextlib import suppress
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]


def leave(code: int) -> None:
    """Leave the process group; where a command of ours is the program, prepare its end.

    Args:
        code: With what it ends.
    """
    error = sys.exception()  # a SystemExit or an interrupt has a code of its own
    if leave_group() and _is_command() and (error is None or isinstance(error, Exception)):
        atexit.register(end, code)  # so Python prints the traceback and waits for its threads first


def leave_group() -> bool:
    """Ends what joined this process to others.

    Returns:
        Whether there was something.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        return True
    return False


def end(code: int) -> None:
    """Ends this process without taking Python down, after all that is registered for its end.

    Args:
        code: Its exit code.
    """
    atexit.unregister(end)
    try:
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)


def _is_command() -> bool:
    # The program of somebody who calls a recipe goes on, and has an exit code of its own.
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    return main.stem == "rlhf" or main.resolve().parent == PACKAGE
