"""From a command line to a checked configuration, and from there to a run and its closing words."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.launching import is_launch, launch_processes
from recipes.lib.leaving import leave
from recipes.lib.processes import is_main_process, may_tell, use_what_is_there
from recipes.lib.stopping import EXIT_CODE, Stopped
from recipes.lib.strict_yaml import read_yaml

ALL_FLAGS = {"--help_all", "--help-all"}
HELP_FLAGS = {"-h", "--help", *ALL_FLAGS}


@dataclass(frozen=True)
class Config:
    """What a recipe runs with."""

    recipe: str
    path: Path | None  # the YAML file that it came from
    values: dict[str, Any]  # exactly the keys that file, flags and caller gave, as plain values
    script: Any  # the recipe's own dataclass
    training: Any | None  # the TrainingArguments of its trainer
    model: Any | None  # trl.ModelConfig


def parse(
    recipe: str,
    argv: Sequence[str],
    overrides: dict[str, Any] | None = None,
    *,
    runs: bool = False,
) -> Config:
    """Reads a recipe's configuration strictly; flags win over the file, overrides over both.

    Args:
        recipe: Name of the recipe, e.g. "ppo".
        argv: `[ACTION] [--config FILE] [--key value ...]`.
        overrides: Values that a calling recipe sets, by key.
        runs: Whether the recipe runs next, so that a path that is not there is a mistake by now.

    Returns:
        The configuration with its dataclasses built and checked.

    Raises:
        UserError: The file or a flag is wrong; the text names key, value and remedy.
    """
    from recipes.lib.early import check_early
    from recipes.lib.fields import fields_of

    module = importlib.import_module(f"recipes.{recipe}")
    argv, positional = _take_positional(module, list(argv))
    argv, path = _take_config(argv)
    file = read_yaml(path) if path else None
    check_early(recipe, path, file, argv, positional | (overrides or {}), runs=runs)
    types = module.arguments()
    fields = fields_of(types)
    values = _file_values(recipe, path, file, fields)
    values |= _flag_values(recipe, argv, types, fields, values)
    values |= positional
    values |= _override_values(recipe, overrides or {}, fields)
    _check_positional(recipe, module, values)
    script, training, model = _build(recipe, path, types, fields, values)
    return Config(recipe, path, values, script, training, model)


def rebuilt(config: Config, changes: dict[str, Any]) -> Config:
    """Builds a configuration again with some keys set.

    Args:
        config: The configuration.
        changes: Values by key.

    Returns:
        A new one.

    Raises:
        UserError: A key or a value is wrong.
    """
    from recipes.lib.fields import fields_of

    types = importlib.import_module(f"recipes.{config.recipe}").arguments()
    fields = fields_of(types)
    values = config.values | _override_values(config.recipe, changes, fields)
    script, training, model = _build(config.recipe, config.path, types, fields, values)
    return Config(config.recipe, config.path, values, script, training, model)


def launch(recipe: str, argv: list[str] | None) -> int:
    """Runs a recipe from the command line.

    Args:
        recipe: Name of the recipe.
        argv: The words after the recipe's name; None takes them from `sys.argv`. With
            --accelerate_config the recipe is started on several processes.

    Returns:
        The exit code: 0, 2 for a mistake of the user, 75 for a training that a signal ended with
        a checkpoint, 130 for an interrupt.
    """
    argv = sys.argv[1:] if argv is None else argv
    if HELP_FLAGS & set(argv):
        return _help(recipe, everything=bool(ALL_FLAGS & set(argv)))
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
        if may_tell():
            print(f"rlhf {recipe}: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        way = "run it again" if recipe == "quickstart" else "go on with --resume"
        _say(f"rlhf {recipe}: {stopped}; {way}.")
        return EXIT_CODE
    except KeyboardInterrupt:
        _say(f"rlhf {recipe}: interrupted")
        return 130


def _say(text: str) -> None:
    if is_main_process():
        print(text, file=sys.stderr)


def _help(recipe: str, everything: bool) -> int:
    from recipes.lib.help import print_help, print_live_help

    if not print_help(recipe, everything):
        print_live_help(recipe, everything)
    return 0


def _run(recipe: str, argv: list[str]) -> int:
    from recipes.lib.closing import print_closing
    from recipes.lib.quiet import hush, restore

    hush()
    use_what_is_there()
    config = parse(recipe, argv, runs=True)
    if config.values.get("log_level"):
        restore(config.values["log_level"])
    summary = importlib.import_module(f"recipes.{recipe}").run(config)
    if is_main_process():
        print_closing(config, summary)
    return 0


def _take_positional(module: ModuleType, argv: list[str]) -> tuple[list[str], dict[str, str]]:
    key = _positional_key(module)
    if key is None or not argv or argv[0].startswith("-"):
        return argv, {}
    return argv[1:], {key: argv[0]}


def _positional_key(module: ModuleType) -> str | None:
    return "action" if hasattr(module, "ACTIONS") else getattr(module, "POSITIONAL", None)


def _check_positional(recipe: str, module: ModuleType, values: dict[str, Any]) -> None:
    key = _positional_key(module)
    if key is None:
        return
    actions = getattr(module, "ACTIONS", None)
    instead = getattr(module, "INSTEAD", "")  # a key that does what the word does
    if not values.get(key) and not values.get(instead):
        what = "|".join(actions) if actions else key.upper()
        raise UserError(f"{key} is missing; write rlhf {recipe} {what}.")
    if actions and values[key] not in actions:
        raise UserError(f"{key}={values[key]}: must be one of {', '.join(actions)}.")


def _take_config(argv: list[str]) -> tuple[list[str], Path | None]:
    rest: list[str] = []
    paths: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            paths.append(next(words, ""))
        elif word.startswith("--config="):
            paths.append(word.partition("=")[2])
        else:
            rest.append(word)
    if len(paths) > 1:
        raise UserError(f"--config {paths[1]}: --config is given twice; name one file.")
    if paths and (not paths[0] or paths[0].startswith("--")):
        raise UserError("--config: the file is missing; write --config FILE.")
    return rest, Path(paths[0]) if paths else None


def _file_values(recipe: str, path: Path | None, file: Any, fields: Any) -> dict[str, Any]:
    from recipes.lib.renamed_keys import translate
    from recipes.lib.unknown_keys import unknown_key

    if file is None:
        return {}
    if "env" in file.values:
        raise UserError(
            f"env ({path}, line {file.lines['env']}): a configuration may not set environment "
            "variables; set them in the shell."
        )

    def where(key: str) -> str:
        return f"{path}, line {file.lines[key]}"

    values = {}
    current, origins = translate(recipe, file.values, fields, where)
    for key, value in current.items():
        place = where(origins.get(key, key))
        if key not in fields:
            raise unknown_key(recipe, key, fields, f"{key} ({place})")
        values[key] = _admit(fields[key], value, f" ({place})")
    return values


def _flag_values(
    recipe: str, argv: list[str], types: tuple[type, ...], fields: Any, beside: dict[str, Any]
) -> dict[str, Any]:
    if not argv:
        return {}
    from recipes.lib.flags import join_negative_numbers, read_flags
    from recipes.lib.old_flags import take_old_flags, translate_flags

    words, old = take_old_flags(recipe, join_negative_numbers(argv), fields)
    values = read_flags(recipe, words, types, fields)
    return translate_flags(recipe, values, old, fields, beside)


def _override_values(recipe: str, overrides: dict[str, Any], fields: Any) -> dict[str, Any]:
    from recipes.lib.unknown_keys import unknown_key

    for key in overrides:
        if key not in fields:
            raise unknown_key(recipe, key, fields, key)
    return {key: _admit(fields[key], value, "") for key, value in overrides.items()}


def _admit(field: Any, value: Any, where: str) -> Any:
    from recipes.lib.constructing import shown
    from recipes.lib.values import MismatchError, admit

    try:
        return admit(field, value)
    except MismatchError as error:
        raise UserError(f"{field.name}={shown(value)}{where}: {error}.") from error


def _build(
    recipe: str, path: Path | None, types: tuple[type, ...], fields: Any, values: dict[str, Any]
) -> tuple[Any, Any, Any]:
    from recipes.lib.constructing import construct
    from recipes.lib.defaults import with_defaults

    absent = [field.name for field in fields.values() if field.required]
    for name in absent:
        if name not in values:
            raise UserError(f"{name} is missing; set it in the file or with --{name}.")
    if values.get("output_dir") == "":
        raise UserError("output_dir='': must name a folder; leave the key out for the default.")
    filled = with_defaults(recipe, path, types, values)
    built = [construct(cls, filled, list(values)) for cls in types]
    training = [item for item in built[1:] if _is_a(type(item), "TrainingArguments")]
    model = [item for item in built[1:] if _is_a(type(item), "ModelConfig")]
    return built[0], training[0] if training else None, model[0] if model else None


def _is_a(cls: type, name: str) -> bool:
    # By name, so that a recipe without a trainer need not import transformers (7 s).
    return any(base.__name__ == name for base in cls.__mro__)
