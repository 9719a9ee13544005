"""What stands around every run: mistakes leave no half-made folder, failures are one sentence."""

from __future__ import annotations

import functools
import glob
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.lib.config.library_checks import check_training, library_refusal
from recipes.lib.config.parse import Config
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.errors import UserError, is_disk, is_memory
from recipes.lib.plan.refusals import refuse_launch
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.folder import folder_of
from recipes.lib.runs.lock import is_locked, refuse_if_locked, release

# Variables with a user's wish.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


Recipe = Callable[[Config], dict[str, Any]]


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
    def wrapped(config: Config) -> dict[str, Any]:
        config = replace(config, start=time.monotonic())
        path = folder_of(config)
        absent = [folder for folder in (path, *path.parents) if not folder.exists()]
        was_empty = path.is_dir() and not any(path.iterdir())
        aside = _set_aside(path)
        try:
            refuse_launch(config)
            _prepare_card(config)
            with one_sentence_errors(path, config):
                check_training(config.training, config.values)
                if (
                    config.script.resume
                    and (path / "summary.json").is_file()
                    and not (path / "report.html").exists()
                ):
                    return _finish(path)
                return run(config)
        except UserError:
            moved = sorted(_set_aside(path) - aside)
            is_new = path in absent or was_empty or bool(moved)
            # A folder that another process took in the meantime is not ours.
            if is_main_process() and is_new and not is_locked(path) and not _has_begun(path):
                _take_back(path, absent, moved)
            raise
        finally:
            release(path)

    return wrapped


def _prepare_card(config: Config) -> None:
    training = config.training
    if training is None:
        return

    # vLLM on the same card has a pool of its own, which does not go with segments that grow.
    with_vllm = getattr(training, "use_vllm", False) or getattr(training, "sampler", "") == "vllm"
    set_expandable_segments(not with_vllm or training.vllm_mode != "colocate")


def _finish(path: Path) -> dict[str, Any]:
    """Write the report of a run that ended without it, for want of room."""
    refuse_if_locked(path)
    if is_main_process():
        # Late, because it imports matplotlib.
        from recipes.lib.report.page import write_report

        write_report(path)
    return read_json(path / "summary.json")


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


@contextmanager
def one_sentence_errors(path: Path, config: Config) -> Iterator[None]:
    """Tell in one sentence what ends a run: memory or disk ran out, or a library refused a key.

    Args:
        path: The run folder.
        config: The parsed configuration.

    Raises:
        UserError: One of them happened.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_main_process() and isinstance(error, OSError):
            refuse_if_locked(path)  # where it was moved, no file was found
        if is_memory(error):
            remedy = (
                "lower per_device_train_batch_size, set gradient_checkpointing, or train an "
                "adapter (use_peft, load_in_4bit)"
            )
            if config.training is None:
                sizes = ("batch_size", "sampling_batch_size")
                key = next((size for size in sizes if hasattr(config.script, size)), sizes[0])
                remedy = f"lower {key} or max_completion_length, or choose dtype=bfloat16"
            raise UserError(f"there is not enough memory for this run; {remedy}.") from error
        if is_disk(error):
            raise UserError(
                f"output_dir={path} cannot be written: the disk is full or read-only; make room "
                "and go on with --resume, or choose another output_dir."
            ) from error
        refusal = library_refusal(error, config.values)
        if refusal is not None:
            raise refusal from error
        raise


def set_expandable_segments(grow: bool = True) -> None:
    """Let PyTorch take memory of a card in segments that grow, where the user wishes nothing else.

    Sampling, scoring and training want blocks of other sizes each, and what one leaves behind in
    segments of a fixed size the next cannot use (docs/benchmarks/gpu.md).

    Args:
        grow: Whether they are to grow; the setting is of the process, so a run that does not want
            it sets it back.
    """
    import torch

    is_asked = any(os.environ.get(name) for name in ALLOCATOR_VARIABLES)
    if sys.platform != "linux" or is_asked or not torch.cuda.is_available():
        return
    with warnings.catch_warnings():
        # Deprecated in torch 2.13; of its successor 2.11 does not say that CUDA heeds it.
        warnings.simplefilter("ignore", FutureWarning)
        torch.cuda.memory._set_allocator_settings(f"expandable_segments:{grow}")
