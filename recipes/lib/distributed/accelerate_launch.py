"""`--accelerate_config`: one command that starts a recipe on several processes or machines.

It does what `accelerate launch` does, with accelerate's own parser and launcher. What is added: a
signal to the launcher reaches every process, and the launcher ends with their exit code.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CalledProcessError, Popen
from typing import Any

from recipes.lib.config.option_table import TRAINING_RECIPES
from recipes.lib.distributed.launch import find_accelerate_config
from recipes.lib.distributed.signals import EXIT_CODE, SIGNALS
from recipes.lib.errors import UserError, one_sentence

CONFIG = "accelerate_config"
# Flags of accelerate's that go with it; every other word is the recipe's.
LAUNCH_FLAGS = (
    "num_processes num_machines machine_rank main_process_ip main_process_port gpu_ids".split()
)
TAKES_SIGNALS = "PET_SIGNALS_TO_HANDLE"  # variable with the signals that torch's launcher takes


def is_launch(argv: Sequence[str]) -> bool:
    """Whether a command line asks for processes to be started."""
    return any(_flag(word) in (CONFIG, *LAUNCH_FLAGS) for word in argv)


def launch_processes(recipe: str, argv: Sequence[str]) -> int:
    """Start a recipe as `accelerate launch` does, and wait for its end.

    Args:
        recipe: Name of the recipe.
        argv: The words after the recipe's name.

    Returns:
        The exit code of the processes: that of a mistake or a failure if one of them had it, 75
        where they stopped with a checkpoint, 128 and the number of a signal that killed one.

    Raises:
        UserError: There is no such configuration, or a flag is wrong.
    """
    given, rest = split_launcher_flags(argv)
    args = accelerate_arguments(recipe, given, rest)
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with _signals_passed_on(), _as_launched():
        try:
            launch_command(args)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return _told(recipe, codes)
        except CalledProcessError as error:
            return _told(recipe, {0: error.returncode})
        except (ValueError, ImportError, ConnectionError) as error:
            raise UserError(f"{CONFIG}={given[CONFIG]}: {one_sentence(error)}.") from error
    return 0


def split_launcher_flags(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take accelerate's flags out of a command line.

    Args:
        argv: The words after the recipe's name.

    Returns:
        Those flags with their values, and the words that are left for the recipe.

    Raises:
        UserError: A value is missing, a flag is given twice, or accelerate_config is missing.
    """
    given: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name = _flag(word)
        if name not in (CONFIG, *LAUNCH_FLAGS):
            rest.append(word)
            continue
        value = word.partition("=")[2] if "=" in word else next(words, "")
        if not value or value.startswith("--"):
            raise UserError(f"{name} has no value; write --{name} VALUE.")
        if name in given:
            raise UserError(f"{name} is given twice ({given[name]}, {value}); give it once.")
        given[name] = value
    if CONFIG not in given:
        raise UserError(
            f"{next(iter(given))} is a flag of accelerate; name its configuration with "
            f"--{CONFIG}, such as --{CONFIG} ddp."
        )
    return given, rest


def accelerate_arguments(recipe: str, given: dict[str, str], rest: Sequence[str]) -> Namespace:
    """What `accelerate launch` would make of the command line.

    Args:
        recipe: Name of the recipe.
        given: Flags for accelerate.
        rest: Words for the recipe.

    Returns:
        The arguments of accelerate's launcher.

    Raises:
        UserError: The recipe is not one that trains, or a value is wrong.
    """
    if recipe not in TRAINING_RECIPES:
        raise UserError(f"{CONFIG} is for recipes that train: {', '.join(TRAINING_RECIPES)}.")
    path = find_accelerate_config(given[CONFIG])
    for name in ("num_processes", "num_machines", "machine_rank", "main_process_port"):
        if name in given and not given[name].isdigit():
            raise UserError(f"{name}={given[name]}: must be a whole number.")
    _refuse_one_process(path, given)
    from accelerate.commands.launch import launch_command_parser

    flags = [word for name in LAUNCH_FLAGS if name in given for word in (f"--{name}", given[name])]
    start = ["--config_file", str(path), *flags, "-m", f"recipes.{recipe}", *rest]
    return launch_command_parser().parse_args(start)


def _refuse_one_process(path: Path, given: dict[str, str]) -> None:
    # Measured with accelerate 1.15: without mpirun it starts one process and says nothing.
    from accelerate.commands.config import load_config_from_file
    from yaml import YAMLError

    try:
        config = load_config_from_file(str(path))
    except (ValueError, TypeError, AttributeError, YAMLError) as error:
        raise UserError(
            f"{CONFIG}={path}: accelerate cannot read it ({one_sentence(error)})."
        ) from error
    several = int(given.get("num_processes", config.num_processes)) > 1
    if config.distributed_type == "MULTI_CPU" and several and not config.mpirun_config:
        raise UserError(
            f"{CONFIG}={path}: distributed_type=MULTI_CPU starts one process where mpirun does "
            f"not; use --{CONFIG} cpu."
        )
    several = several or int(given.get("num_machines", config.num_machines)) > 1
    if config.distributed_type == "NO" and several:
        raise UserError(
            f"{CONFIG}={given[CONFIG]}: it starts one process on one machine; use --{CONFIG} ddp, "
            "or multi_node for several machines."
        )


def _flag(word: str) -> str:
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") else ""


@contextmanager
def _as_launched() -> Iterator[None]:
    """Keep torch's launcher from taking the signals and from telling each failure in a page.

    A single process gets a session of its own, as torch's have. In that of this one a Ctrl-C would
    reach it twice, from the terminal and from here, and a second one stops at once.
    """
    from accelerate.commands import launch

    before = os.environ.get(TAKES_SIGNALS)
    os.environ[TAKES_SIGNALS] = "SIGQUIT"
    logger = logging.getLogger("torch.distributed.elastic")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    theirs, launch.simple_launcher = launch.simple_launcher, _start_one
    try:
        yield
    finally:
        launch.simple_launcher = theirs
        logger.setLevel(level)
        del os.environ[TAKES_SIGNALS]
        if before is not None:
            os.environ[TAKES_SIGNALS] = before


def _start_one(args: Namespace) -> None:
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(args)
    code = Popen(command, env=environment, start_new_session=True).wait()
    if code:
        raise CalledProcessError(code, command)


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Hand signals on to the processes; what they do about it decides how this one ends.

    What is ignored, as SIGHUP is under nohup, stays so, here and in the processes.
    """
    numbers = [*SIGNALS, signal.SIGHUP]
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _pass_on) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(number: int, frame: Any) -> None:
    import psutil

    children = psutil.Process().children()
    for child in children:
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    if not children:  # nothing has begun
        raise SystemExit(128 + number)


def _told(recipe: str, codes: dict[int, int]) -> int:
    """Choose the exit code that says most, and name a process that was killed."""
    if 2 in codes.values():
        return 2
    # When one has ended, torch's launcher ends the others by SIGTERM.
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    for rank, number in killed.items():
        name = signal.Signals(number).name
        print(f"rlhf {recipe}: process {rank} was killed by {name}.", file=sys.stderr)
        return 128 + number
    failed = [code for code in codes.values() if code > 0 and code != EXIT_CODE]
    if failed:
        return failed[0]
    return EXIT_CODE if EXIT_CODE in codes.values() else 128 + signal.SIGTERM
