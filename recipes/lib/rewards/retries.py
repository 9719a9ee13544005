"""Rewards that fail for a while, hang or die: asked again a few times, in a process to be killed.

A missing reward never becomes a zero: what does not answer in the end stops the run.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from recipes.lib.distributed.signals import Stop
from recipes.lib.errors import UserError
from recipes.lib.rewards.loading import load_function
from recipes.lib.rewards.scoring import await_rewards, call_reward, function_name, is_async

MODULE = "recipes.lib.rewards.retries"
UNSENT = ("trainer_state", "environments")  # of TRL's trainers
BACKOFF = 1.0  # seconds before it is asked again, doubled each time
STARTUP = 60.0  # seconds for the process to import what the function needs
# Libraries for endpoints have exceptions of their own that are no OSError.
TRANSIENT_NAMES = ("Connect", "Timeout", "RateLimit", "ServiceUnavailable", "InternalServer")


def with_retries(
    function: Callable[..., Any], retries: int, what: str = "reward function"
) -> Callable[..., Any]:
    """A reward function that is asked again where its failure may pass.

    Args:
        function: The function, async or not.
        retries: How often.
        what: What a message calls it.

    Returns:
        The same function with that patience.

    Raises:
        UserError: (the function made) It failed every time.
    """
    name = function_name(function)

    def wait(attempt: int, error: Exception) -> float:
        if not is_transient(error):
            raise error
        if attempt == retries:
            raise UserError(
                f"{what} {name} failed {attempt + 1} times, at last with "
                f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}; mend it, or "
                "raise reward_retries or reward_timeout."
            ) from error
        return BACKOFF * 2**attempt

    def called(**given: Any) -> Any:
        for attempt in range(retries + 1):
            try:
                return function(**given)
            except Exception as error:
                time.sleep(wait(attempt, error))
        return None  # never: the last attempt returns or raises

    async def awaited(**given: Any) -> Any:
        for attempt in range(retries + 1):
            try:
                return await function(**given)
            except Exception as error:
                await asyncio.sleep(wait(attempt, error))
        return None

    made = awaited if is_async(function) else called
    made.__name__ = name
    return made


def is_transient(error: Exception) -> bool:
    """Whether a failure is one of a connection, of time, or of a process that died."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    if isinstance(error, OSError):  # ConnectionError and TimeoutError, too
        return True
    return any(word in kind.__name__ for kind in type(error).__mro__ for word in TRANSIENT_NAMES)


class RewardProcess:
    """A reward function in a process of its own.

    Args:
        reference: Where the function is, as for `load_function`.
        name: Its name in messages and metrics.
        timeout: Seconds that it may take for a batch.
        maker: What makes the function of what is at the reference; default: that is the function.
    """

    def __init__(self, reference: str, name: str, timeout: float, maker: str = "") -> None:
        self.reference, self.maker = reference, maker
        self.__name__ = name
        self.timeout = timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None

    def __call__(self, **given: Any) -> Any:
        """Ask the function.

        Raises:
            TimeoutError: It did not answer in time; its process was killed.
            ConnectionError: Its process died.
            UserError: It raised something that will not pass.
        """
        if self.process is None:
            self._start()
        assert self.connection is not None
        # TRL's trainers hand on themselves and functions of theirs, which cannot leave the process.
        sent = {k: v for k, v in given.items() if k not in UNSENT and not callable(v)}
        # A world that was lost plays all its turns again.
        turns = max(map(len, given["texts"]), default=1) if self.maker else 1
        seconds = self.timeout * max(1, turns)
        try:
            self.connection.send(sent)
            kind, said = self._answer(seconds, f"did not answer within {seconds:g} s")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died() from error
        except (KeyboardInterrupt, Stop):
            self.stop()  # or the next question would get the answer to this one
            raise
        if kind == "passing":
            raise ConnectionError(said)
        if kind == "error":
            raise UserError(said)
        return said

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        watched, self.alive = os.pipe()  # the process ends when this one does, however that is
        numbers = (theirs.fileno(), watched)
        paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            # -P: nothing of the folder that the user stands in comes before the package.
            [sys.executable, "-P", "-m", MODULE, self.reference, self.maker, *map(str, numbers)],
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # Ctrl-C is for the run, which tells it
        )
        theirs.close()
        os.close(watched)
        ready = max(STARTUP, self.timeout)
        kind, said = self._answer(ready, f"was not ready within {ready:g} s")
        if kind != "ready":
            self.stop()
            raise UserError(said)

    def _answer(self, seconds: float, what: str) -> tuple[str, Any]:
        assert self.connection is not None
        try:
            if not self.connection.poll(seconds):
                self.stop()
                raise TimeoutError(f"{self.__name__} {what}")
            kind, said = self.connection.recv()
        except EOFError as error:
            raise self._died() from error
        return kind, said

    def _died(self) -> ConnectionError:
        assert self.process is not None
        code = self.process.wait()
        self.stop()
        return ConnectionError(f"the process of {self.__name__} died with exit code {code}")

    def stop(self) -> None:
        """Kill the process; the next call starts another."""
        if self.process is not None and self.connection is not None:
            self.process.kill()
            self.process.wait()
            self.connection.close()
            os.close(self.alive)
        self.process = self.connection = None

    def __del__(self) -> None:
        """Leave no process behind."""
        self.stop()


def serve(reference: str, maker: str, connection: Connection, watched: int) -> None:
    """Answer until the process that asks is gone.

    Args:
        reference: Where the function is.
        maker: What makes it of what is there; empty where it is the function.
        connection: To the process that asks.
        watched: Number of a file that ends when that process does.
    """
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    try:
        function = load_function(reference)
        function = load_function(maker)(function) if maker else function
    except UserError as error:
        connection.send(("error", str(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            given = connection.recv()
        except EOFError:
            return
        connection.send(_said(function, given))


def _said(function: Callable[..., Any], given: dict[str, Any]) -> tuple[str, Any]:
    try:
        said = call_reward(function, given)
        if inspect.isawaitable(said):
            said = await_rewards([said], [function])[0]
        return "said", said.tolist() if hasattr(said, "tolist") else said
    except Exception as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        passing = isinstance(cause, Exception) and is_transient(cause)
        return ("passing", str(cause)) if passing else ("error", str(error))


def _end_with(watched: int) -> None:
    os.read(watched, 1)
    os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], Connection(int(sys.argv[3])), int(sys.argv[4]))
