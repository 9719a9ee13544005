"""One run in a folder at a time: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from recipes.lib.errors import UserError

LOCK_FILE = "run.lock"
_held: dict[Path, IO[str]] = {}


def acquire(folder: Path) -> None:
    """Take a run folder for this process.

    Args:
        folder: The folder, which is there.

    Raises:
        UserError: Another process has it. What a process that died left behind is no lock.
    """
    path = folder.resolve() / LOCK_FILE
    while path.parent not in _held:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read()
            file.close()
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise UserError(_refusal(folder, holder)) from error
            return  # a file system without locks
        if not _is_at(file, path):  # its holder has deleted it in the meantime
            file.close()
            continue
        try:
            file.truncate(0)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now})
            file.write(holder + "\n")
            file.flush()
        except OSError:  # a full disk
            path.unlink(missing_ok=True)
            with suppress(OSError):
                file.close()
            raise
        _held[path.parent] = file


def refuse_if_locked(folder: Path) -> None:
    """Look whether another process has a run folder, and change nothing.

    Args:
        folder: The folder.

    Raises:
        UserError: It has, its lock is another user's, or this process had it and it was moved.
    """
    path = folder.resolve() / LOCK_FILE
    if path.parent in _held:
        if _is_at(_held[path.parent], path):
            return
        raise UserError(
            f"output_dir={folder} was moved or deleted while the run wrote to it; go on in its new "
            "place with --resume and that output_dir."
        )
    if not path.exists():
        return
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise UserError(_refusal(folder, file.read())) from error
            except OSError:
                return  # a file system without locks
    except PermissionError as error:
        raise UserError(
            f"output_dir={folder}: its {LOCK_FILE} belongs to another user, so whether it is in "
            "use cannot be seen; choose another output_dir."
        ) from error


def is_locked(folder: Path) -> bool:
    """Whether `refuse_if_locked` refuses a run folder."""
    try:
        refuse_if_locked(folder)
    except UserError:
        return True
    return False


def release(folder: Path) -> None:
    """Give a run folder back, if this process has it."""
    file = _held.pop(folder.resolve(), None)
    if file is not None:
        with suppress(OSError):
            if _is_at(file, Path(file.name)):
                Path(file.name).unlink()
        file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _refusal(folder: Path, text: str) -> str:
    try:
        holder = json.loads(text)
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"output_dir={folder} is in use by {who}; wait for it, or choose another output_dir."
