"""Checkpoints that are whole and safe: sealed with a manifest, put in place by a rename, checked.

A checkpoint is written into a folder beside the run's own ones. Once all of it is on the disk it
gets its manifest and its name, and only then do older ones go. So wherever a run is killed, the
newest checkpoint with a name is a good one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.runs.files import write_json

MANIFEST = "manifest.json"
PARTIAL = "_partial"  # folder of what is being written or deleted; what begins with _ is not pushed
PREFIX = "checkpoint-"


def make_empty(folder: Path) -> None:
    """Make an empty folder for a checkpoint that is to be written.

    Args:
        folder: The folder; what a run that was killed left there is deleted.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def seal(folder: Path, step: int, **more: Any) -> None:
    """Bring a checkpoint's files to the disk and write down what they are.

    Args:
        folder: The checkpoint, with all of its files.
        step: Optimizer step that it was made at.
        more: Further facts, such as how the run was started.
    """
    files = {}
    for path in _files(folder):
        _sync(path)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    write_json(folder / MANIFEST, {"step": step, **more, "files": files})
    _sync(folder / MANIFEST)
    for inner in {path.parent for path in _files(folder)}:
        _sync(inner)


def publish(folder: Path, target: Path) -> None:
    """Give a sealed checkpoint its place.

    Args:
        folder: The checkpoint, on the same disk as the target.
        target: Its place; what was there is deleted.
    """
    if target.exists():
        delete(target)
    folder.rename(target)
    with suppress(OSError):  # it is not empty
        folder.parent.rmdir()
    _sync(target.parent)


def delete(folder: Path) -> None:
    """Delete a checkpoint so that no half of it is ever seen under its name."""
    aside = folder.parent / PARTIAL / f"deleted-{folder.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        aside.parent.rmdir()


def keep_newest(run: Path, limit: int | None, spared: Iterable[str]) -> None:
    """Delete the oldest checkpoints of a run.

    Args:
        run: The run folder.
        limit: How many to keep, at least; None or 0 keeps all.
        spared: Names of those that are kept in any case, and count.
    """
    if not limit or limit < 0:
        return
    found = [folder for _, folder in list_checkpoints(run)]
    dispensable = [folder for folder in found if folder.name not in set(spared)]
    for folder in dispensable[: max(0, len(found) - limit)]:
        delete(folder)


def checkpoint_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint.

    Args:
        folder: The checkpoint.

    Returns:
        A few words, or None if it is as it was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written to its end"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is broken"
    for name, known in files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != known["bytes"]:
            return f"{name} has {size:,} bytes of {known['bytes']:,}"
        if _hash(path) != known["sha256"]:
            return f"{name} was altered"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; nothing where it says nothing that can be read."""
    try:
        known = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def newest_good(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is as it was written.

    Args:
        run: The run folder.

    Returns:
        The checkpoint, or None; and what is wrong with each newer one, as sentences.
    """
    told: list[str] = []
    for _, folder in reversed(list_checkpoints(run)):
        wrong = checkpoint_fault(folder)
        if wrong is None:
            return folder, told
        told.append(f"{folder} is left out: {wrong}.")
    return None, told


def refuse_broken(folder: Path) -> None:
    """Refuse a checkpoint that the user named.

    Args:
        folder: The checkpoint; one without a manifest is of another program and passes.

    Raises:
        UserError: It is not as it was written, or has no state of the optimizer.
    """
    if (folder / MANIFEST).exists() and (wrong := checkpoint_fault(folder)):
        raise UserError(f"resume_from_checkpoint={folder}: {wrong}; name an older checkpoint.")
    refuse_stateless(folder)


def refuse_stateless(folder: Path) -> None:
    """Refuse a checkpoint that no training goes on from.

    Args:
        folder: The checkpoint.

    Raises:
        UserError: It has no state of the optimizer.
    """
    states = ("optimizer*", "pytorch_model_fsdp*", "global_step*")
    if folder.is_dir() and not any(path for state in states for path in folder.glob(state)):
        raise UserError(
            f"resume_from_checkpoint={folder}: it holds a model alone (save_only_model), so "
            f"nothing goes on from it; start another run with model_name_or_path={folder}."
        )


def list_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run with their steps, in order."""
    found = [(folder.name.removeprefix(PREFIX), folder) for folder in run.glob(f"{PREFIX}*")]
    return sorted((int(step), folder) for step, folder in found if step.isdigit())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    # A rename may reach the disk before the bytes do.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
