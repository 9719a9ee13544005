"""What stands around every run: mistakes leave no half-made folder, failures are one sentence."""

from __future__ import annotations

import functools
import glob
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.failures import told
from recipes.lib.launch_table import refuse
from recipes.lib.lock import is_taken, refuse_if_taken, release
from recipes.lib.refusals import check_training
from recipes.lib.runs import folder_of, is_main_process

Recipe = Callable[[Any], dict[str, Any]]


def guarded(run: Recipe) -> Recipe:
    """Wrap a recipe's `run`.

    Where a UserError ends a run before it logged or saved anything, its folder is taken away
    again, with the parents that were made for it; a run that `overwrite` moved aside comes back.

    Args:
        run: The function of a recipe that takes its configuration.

    Returns:
        The same function with that care.
    """

    @functools.wraps(run)
    def wrapped(config: Any) -> dict[str, Any]:
        path = folder_of(config)
        absent = [folder for folder in (path, *path.parents) if not folder.exists()]
        was_empty = path.is_dir() and not any(path.iterdir())
        aside = _set_aside(path)
        try:
            refuse(config)
            _prepare_card(config)
            with told(path, config.values):
                check_training(config.training, config.values)
                if config.script.resume and _lacks_report_alone(path):
                    return _finish(path)
                return run(config)
        except UserError:
            moved = sorted(_set_aside(path) - aside)
            is_new = path in absent or was_empty or bool(moved)
            # A folder that another process took in the meantime is not ours.
            if is_main_process() and is_new and not is_taken(path) and not _has_begun(path):
                _take_back(path, absent, moved)
            raise
        finally:
            release(path)

    return wrapped


def _prepare_card(config: Any) -> None:
    training = config.training
    if training is None:
        return
    from recipes.lib.memory import let_segments_grow

    # vLLM on the same card has a pool of its own, which does not go with segments that grow.
    with_vllm = getattr(training, "use_vllm", False) or getattr(training, "sampler", "") == "vllm"
    let_segments_grow(not with_vllm or training.vllm_mode != "colocate")


def _lacks_report_alone(path: Path) -> bool:
    return (path / "summary.json").is_file() and not (path / "report.html").exists()


def _finish(path: Path) -> dict[str, Any]:
    """Write the report of a run that ended without it, for want of room."""
    refuse_if_taken(path)
    if is_main_process():
        # Late, because it imports matplotlib.
        from recipes.lib.report import write_report

        write_report(path)
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return summary


def _take_back(path: Path, absent: list[Path], moved: list[Path]) -> None:
    if path in absent or moved:
        shutil.rmtree(path, ignore_errors=True)
    elif path.is_dir():
        for entry in path.iterdir():  # the folder itself may be where the user stands
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if moved:
        moved[0].rename(path)
    for folder in absent[1:]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _set_aside(path: Path) -> set[Path]:
    return set(path.parent.glob(f"{glob.escape(path.name)}.old-*"))


def _has_begun(path: Path) -> bool:
    metrics = path / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        return True
    return (path / "final").exists() or any(path.glob("checkpoint-*/manifest.json"))
