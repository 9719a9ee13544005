"""A disk that is soon full."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


class NoMountError(Exception):
    """A file system cannot be mounted here."""


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 2 MB, mounted where the superuser may do so."""
    disk = place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise NoMountError from error
    if done.returncode:
        raise NoMountError
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
