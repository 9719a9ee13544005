"""The run folder: who may write into it, what it holds, where a run goes on.

Layout: config.yaml, metrics.jsonl, checkpoint-*/, final/, lineage.json, samples.jsonl, report.html,
summary.json. A folder with a config.yaml holds a run; one with a summary.json holds a finished run.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recipes.lib.config.build import redacted
from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.distributed.processes import broadcast_from_main
from recipes.lib.distributed.processes import is_main_process as is_main_process
from recipes.lib.errors import UserError, note
from recipes.lib.runs.files import write_json, write_jsonl, write_text
from recipes.lib.runs.lock import LOCK_FILE, acquire, refuse_if_locked, release
from recipes.lib.runs.resume import refuse_links, refuse_other_config


@dataclass(kw_only=True)
class RunArguments:
    """How a recipe treats the folder it writes to."""

    resume: bool = option(False, "Go on from the newest good checkpoint of the folder.")
    overwrite: bool = option(False, "Move the run that the folder holds aside and start anew.")
    trust_checkpoint: bool = option(
        False, "Resume from a checkpoint that could run code; know who made it."
    )


@dataclass(kw_only=True)
class FolderArguments(RunArguments):
    """RunArguments for recipes that have no trainer configuration with an output_dir of its own."""

    output_dir: str | None = option(None, "Run folder; default runs/<recipe>/<name of the YAML>.")


@dataclass
class Run:
    """An opened run folder.

    Args:
        path: The folder.
        checkpoint: The checkpoint to go on from, or None for a fresh start.
        seconds_before: What earlier processes took for the run, up to that checkpoint.
        is_trusted: Whether the checkpoint may run code.
        meter: Of the energy that a training uses.
    """

    path: Path
    checkpoint: Path | None = None
    seconds_before: float = 0.0
    is_trusted: bool = False
    meter: Any = None

    @property
    def final(self) -> Path:
        """Folder of the finished model or data."""
        return self.path / "final"

    @property
    def partial(self) -> Path:
        """Folder that becomes final/ when it is whole; what begins with _ is never pushed."""
        return self.path / "_final.partial"

    def publish_final(self) -> None:
        """Make the partial folder final/, in place of an earlier one."""
        shutil.rmtree(self.final, ignore_errors=True)
        self.partial.replace(self.final)

    def write_summary(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write summary.json, which marks the run as finished, and return the summary."""
        write_json(self.path / "summary.json", summary)
        return summary

    def write_samples(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write samples.jsonl, replacing what it held."""
        write_jsonl(self.path / "samples.jsonl", rows)


def named_folder(pattern: str, values: Any) -> str:
    """A folder that is named by what it is made from.

    Args:
        pattern: Its path, with keys in angle brackets, such as runs/merge/<run>.
        values: Has a run, a model or a judge by each key.

    Returns:
        The path with the last two parts of each in place of its key: ppo-mine of
        runs/ppo/mine/final.
    """

    def short(key: re.Match[str]) -> str:
        given = getattr(values, key[1]) or ""
        names = [given] if isinstance(given, str) else given
        paths = [Path(name.replace(":", "/")).parts for name in names]
        kept = [[one for one in parts if one not in ("/", ".", "..", "final")] for parts in paths]
        return "-".join(one for parts in kept for one in parts[-2:])[
            -60:
        ]  # a file system takes 255 characters for three of them

    return re.sub(r"<(\w+)>", short, pattern)


def check_folder(config: Config) -> None:
    """Refuse an output folder that may not be written to, before anything heavy is loaded.

    Args:
        config: The parsed Config of a recipe.

    Raises:
        UserError: The folder holds a run and neither resume nor overwrite was given, holds
            something else, or the configuration differs from the one to resume.
    """
    path, script = folder_of(config), config.script
    # All processes end together, so that none waits for the others and tells of that.
    broadcast_from_main(lambda: check_path(path, script.resume, script.overwrite, config.values))


def open_run(config: Config) -> Run:
    """Take possession of the output folder of a recipe.

    Args:
        config: The parsed Config of a recipe.

    Returns:
        The run; with `resume`, its checkpoint is the newest good one (None if there is none).

    Raises:
        UserError: As in `check_folder`, or the folder cannot be written.
    """
    path = folder_of(config)
    check_folder(config)
    broadcast_from_main(lambda: _take(path, config.script.resume, config.values))
    checkpoint = _checkpoint(path) if config.script.resume else None
    if config.script.resume and checkpoint is None:
        note(f"output_dir={path} holds no checkpoint to resume; the run starts at the beginning.")
    return Run(path, checkpoint, is_trusted=config.script.trust_checkpoint)


def folder_of(config: Config) -> Path:
    """The output folder of a recipe's configuration."""
    holder = config.training if config.training is not None else config.script
    return Path(holder.output_dir)


def check_path(path: Path, resume: bool, overwrite: bool, values: dict[str, Any]) -> None:
    """As `check_folder`, of a path and the keys of RunArguments."""
    if resume and overwrite:
        raise UserError("resume and overwrite exclude each other; give one of them.")
    _refuse_unwritable(path)
    if is_run(path):
        if resume or overwrite:
            refuse_if_locked(path)
        if resume:
            refuse_links(path)
            refuse_other_config(path, values)
        elif not overwrite:
            raise UserError(
                f"output_dir={path} holds a run; continue it with --resume, move it aside with "
                "--overwrite, or choose another output_dir."
            )
    elif path.is_dir() and any(entry.name != LOCK_FILE for entry in path.iterdir()):
        raise UserError(f"output_dir={path} is not empty and holds no run; choose another folder.")


def _refuse_unwritable(path: Path) -> None:
    # Asked of the file system and not of the permissions, which the superuser does not need.
    there = next(
        folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()
    )
    if path.is_symlink() and not path.exists():
        raise UserError(f"output_dir={path} is a link to nothing; remove it, or name a folder.")
    if not there.is_dir():
        raise UserError(
            f"output_dir={path} cannot be written: {there.name} is a file, not a folder."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"output_dir={path} cannot be written: {there} is read-only; choose another output_dir."
        )


def _take(path: Path, resume: bool, values: dict[str, Any]) -> None:
    try:
        if is_run(path):
            if resume:
                acquire(path)
                return
            move_aside(path)
        path.mkdir(parents=True, exist_ok=True)
        acquire(path)
        write_text(path / "config.yaml", config_text(values))
    except OSError as error:
        raise UserError(f"output_dir={path} cannot be written: {error.strerror}.") from error


def _checkpoint(path: Path) -> Path | None:
    from recipes.lib.runs.checkpoints import newest_good

    found, told = broadcast_from_main(lambda: newest_good(path))
    for sentence in told if is_main_process() else ():
        print(sentence, file=sys.stderr)
    return found


def config_text(values: dict[str, Any]) -> str:
    """The YAML of a configuration as it is kept in config.yaml."""
    left_out = {"resume", "overwrite", "trust_checkpoint", "hub_token"}
    kept = {key: value for key, value in values.items() if key not in left_out}
    return str(yaml.safe_dump(redacted(kept), sort_keys=False, allow_unicode=True))


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (path / "config.yaml").is_file()


def move_aside(path: Path) -> Path:
    """Rename a run folder to the first free <name>.old-<n> and return the new path.

    Raises:
        UserError: Another process has it, or a stage in it.
    """
    for lock in (path / LOCK_FILE, *path.glob(f"*/{LOCK_FILE}")):
        refuse_if_locked(lock.parent)
    release(path)
    number = 1
    while (target := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(target)
    return target
