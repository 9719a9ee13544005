"""The way in: from a command line to a checked configuration, a run, its last words, a code."""

from __future__ import annotations

import gc
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from recipes.lib.config.build import SECRET
from recipes.lib.config.parse import CommandLine, Config, build, read_command_line
from recipes.lib.distributed.accelerate_launch import is_launch, launch_processes
from recipes.lib.distributed.process_exit import leave
from recipes.lib.distributed.processes import (
    choose_device,
    is_main_process,
    may_report,
    num_processes,
)
from recipes.lib.distributed.signals import EXIT_CODE, Stopped
from recipes.lib.errors import FaultError, UserError
from recipes.lib.models.quick_import import import_quickly
from recipes.lib.recipe.help import print_help

RESUME_KEYS = ("resume", "overwrite", "overwrite_output_dir", "resume_from_checkpoint")


def launch(recipe: str, argv: list[str] | None) -> int:
    """Runs a recipe from the command line.

    Args:
        recipe: Name of the recipe.
        argv: The words after the recipe's name; None takes them from `sys.argv`. With
            --accelerate_config the recipe is started on several processes.

    Returns:
        The exit code: 0, 2 for a mistake of the user, 3 for a fault of a reward model, 75 for a
        training that a signal ended with a checkpoint, 130 for an interrupt.
    """
    argv = sys.argv[1:] if argv is None else argv
    if print_help(recipe, argv):
        return 0
    code = 1  # of a traceback
    try:
        code = _launch(recipe, argv)
        return code
    finally:
        leave(code)


def _launch(recipe: str, argv: list[str]) -> int:
    try:
        return launch_processes(recipe, argv) if is_launch(argv) else _run(recipe, argv)
    except UserError as error:
        if may_report():
            print(f"rlhf {recipe}: error: {error}", file=sys.stderr)
        return 3 if isinstance(error, FaultError) else 2
    except Stopped as stopped:
        goes_on = recipe in ("quickstart", "rounds")  # by themselves
        way = "run it again" if goes_on else "go on with --resume"
        _say(f"rlhf {recipe}: {stopped}; {way}.")
        again = [] if goes_on or "--resume" in argv else ["--resume"]
        names = [word.partition("=")[0].replace("-", "_") for word in argv]
        if num_processes() == 1 and not any(map(SECRET.search, names)):
            _say(f"  {shlex.join(['rlhf', recipe, *argv, *again])}")
        return EXIT_CODE
    except KeyboardInterrupt:
        _say(f"rlhf {recipe}: interrupted")
        return 130


def _say(text: str) -> None:
    if is_main_process():
        print(text, file=sys.stderr)


def _run(recipe: str, argv: list[str]) -> int:
    from recipes.lib.recipe.summary import print_closing, print_run
    from recipes.lib.verbosity import hush, restore

    hush()
    import_quickly()
    choose_device()
    is_first = "torch" not in sys.modules
    config = parse(recipe, argv, runs=True)
    if is_first:
        gc.freeze()  # what was imported stays, and each training would look through it for garbage
    if config.values.get("log_level"):
        restore(config.values["log_level"])
    try:
        summary = importlib.import_module(f"recipes.{recipe}").run(config)
    except FaultError as fault:
        if fault.summary is not None and fault.summary["recipe"] == recipe:
            print_run(config, fault.summary)
        raise
    if is_main_process():
        print_closing(config, summary)
    return 0


def run(recipe: str, config: str | Path | None = None, **values: Any) -> dict[str, Any]:
    """Run a recipe from Python, as its command would.

    Args:
        recipe: Name of the recipe, e.g. "sft".
        config: Its YAML file.
        **values: Keys of the recipe; they win over the file.

    Returns:
        The summary.

    Raises:
        UserError: A key or a value is wrong, or the run cannot go on; one sentence.
    """
    parsed = parse(recipe, ["--config", str(config)] if config else [], values, runs=True)
    summary: dict[str, Any] = importlib.import_module(f"recipes.{recipe}").run(parsed)
    return summary


def parse(
    recipe: str,
    argv: Sequence[str],
    overrides: dict[str, Any] | None = None,
    *,
    runs: bool = False,
) -> Config:
    """Read a recipe's configuration strictly; flags win over the file, overrides over both.

    Args:
        recipe: Name of the recipe, e.g. "ppo".
        argv: `[WORD [MORE ...]] [--config FILE] [--key value ...]`.
        overrides: Values that a calling recipe sets, by key.
        runs: Whether the recipe runs next, so that a path that is not there is a mistake by now.

    Returns:
        The configuration with its dataclasses built and checked.

    Raises:
        UserError: The file or a flag is wrong; the text names key, value and remedy.
    """
    module = importlib.import_module(f"recipes.{recipe}")
    word = "action" if hasattr(module, "ACTIONS") else getattr(module, "POSITIONAL", None)
    given = read_command_line(recipe, argv, word, getattr(module, "OPERANDS", None))
    values = given.values | (overrides or {})
    if word is not None:
        _check_word(module, word, recipe, values)
    if runs:
        check_paths(given, values)
    return build(given, module.arguments(), overrides)


def _check_word(module: ModuleType, key: str, recipe: str, values: dict[str, Any]) -> None:
    actions = getattr(module, "ACTIONS", None)
    instead = getattr(module, "INSTEAD", ())  # keys that do what the word does
    if not any(map(values.get, (key, *instead))):
        what = "|".join(actions) if actions else key.upper()
        raise UserError(f"{key} is missing; write rlhf {recipe} {what}.")
    if actions and values[key] not in actions:
        raise UserError(f"{key}={values[key]}: must be one of {', '.join(actions)}.")


def check_paths(given: CommandLine, values: dict[str, Any]) -> None:
    """Refuse absent data, absent trackers and a taken folder, before the imports of seconds.

    Args:
        given: What file and command line say.
        values: The same by key, with what wins over both.

    Raises:
        UserError: One of them.
    """
    from recipes.lib.config.library_checks import check_trackers
    from recipes.lib.config.option_table import table_fields
    from recipes.lib.data.reading import local_path
    from recipes.lib.runs.folder import check_path

    name = values.get("dataset_name")
    if isinstance(name, str) and name:
        local_path(name)
    check_trackers(values.get("report_to"))
    trains = {"overwrite", "max_steps"} <= set(table_fields(given.recipe))
    if not trains or not is_main_process():
        return
    if any(values.get(key) not in (None, False) for key in RESUME_KEYS):
        return
    name = given.path.stem if given.path else "default"
    folder = values.get("output_dir", Path("runs") / given.recipe / name)
    if isinstance(folder, (str, Path)) and str(folder):
        check_path(Path(folder), resume=False, overwrite=False, values={})
