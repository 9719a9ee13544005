"""From a command line to a checked configuration, in two steps: read and check, then `build`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.lib.config.build import construct, redacted, with_defaults, yaml_text
from recipes.lib.config.fields import Field, fields_of
from recipes.lib.config.foreign_files import refuse_foreign
from recipes.lib.config.legacy_keys import is_old, new_name, translate
from recipes.lib.config.legacy_tables import NEW_VALUES
from recipes.lib.config.option_table import table_fields
from recipes.lib.config.shipped_configs import find_configs
from recipes.lib.config.strict_yaml import YamlFile, read_yaml
from recipes.lib.config.unknown_keys import unknown_key
from recipes.lib.config.values import MismatchError, coerce
from recipes.lib.errors import UserError


@dataclass(frozen=True)
class Config:
    """What a recipe runs with.

    Args:
        recipe: Its name.
        path: The YAML file that it came from.
        types: The dataclasses that it was built from.
        values: Exactly the keys that file, flags and caller gave, as plain values.
        script: The recipe's own dataclass.
        training: The TrainingArguments of its trainer; None where nothing is trained.
        model: A trl.ModelConfig; None where the recipe takes none.
        start: When this process began the run, by time.monotonic.
    """

    recipe: str
    path: Path | None
    types: tuple[type, ...]
    values: dict[str, Any]
    script: Any
    training: Any
    model: Any
    start: float = 0.0


@dataclass(frozen=True)
class CommandLine:
    """What a user gave, checked as far as that takes no imports of seconds.

    Args:
        recipe: Name of the recipe.
        path: The configuration file, or None.
        file: Its content, or None.
        flags: The other words of the command line.
        word: The values of words that stand without a flag, by their keys.
        values: All of it by key, raw: the words behind flags as text.
    """

    recipe: str
    path: Path | None
    file: YamlFile | None
    flags: list[str]
    word: dict[str, Any]
    values: dict[str, Any]


def read_command_line(
    recipe: str, argv: Sequence[str], word: str | None = None, more: str | None = None
) -> CommandLine:
    """Read a recipe's command line and file, and refuse what is wrong in them at first sight.

    Args:
        recipe: Name of the recipe, e.g. "ppo".
        argv: `[WORD [MORE ...]] [--config FILE] [--key value ...]`.
        word: Key of the word that stands in front, where the recipe takes one.
        more: Key of the words behind that one, where the recipe takes some; the same key, where
            that one is the first of several.

    Returns:
        What was given.

    Raises:
        UserError: The file is not there or is no YAML, a key is unknown, or a value of the file has
            a wrong type.
    """
    argv = list(argv)
    has_word = word is not None and argv and not argv[0].startswith("-")
    first: dict[str, Any] = {str(word): argv.pop(0)} if has_word and word != more else {}
    while has_word and more and argv and not argv[0].startswith("-"):
        first.setdefault(more, []).append(argv.pop(0))
    flags, path = take_config(argv)
    file = read_yaml(path) if path else None
    if file is not None and "env" in file.values:
        raise UserError(
            f"env ({path}, line {file.lines['env']}): a configuration may not set environment "
            "variables; set them in the shell."
        )
    if file is not None and path is not None:
        refuse_foreign(recipe, path, file)
    values = _quick_values(recipe, path, file, flags)
    return CommandLine(recipe, path, file, flags, first, values | first)


def build(
    given: CommandLine, types: tuple[type, ...], overrides: dict[str, Any] | None = None
) -> Config:
    """Build a recipe's dataclasses; flags win over the file, overrides over both.

    Args:
        given: From `read_command_line`.
        types: The recipe's dataclasses.
        overrides: Values that a calling recipe sets, by key.

    Returns:
        The configuration, checked.

    Raises:
        UserError: A key or a value is wrong; the text names key, value and remedy.
    """
    fields = fields_of(types)
    values = _file_values(given, fields)
    if given.flags:
        from recipes.lib.config.flags import read_flags

        values |= read_flags(given.recipe, given.flags, types, fields)
    values |= given.word | _override_values(given.recipe, overrides or {}, fields)
    return _built(given.recipe, given.path, types, fields, values)


def rebuild(config: Config, changes: dict[str, Any]) -> Config:
    """Build a configuration again with some keys set.

    Args:
        config: The configuration.
        changes: Values by key.

    Returns:
        A new one.

    Raises:
        UserError: A key or a value is wrong.
    """
    fields = fields_of(config.types)
    values = config.values | _override_values(config.recipe, changes, fields)
    return _built(config.recipe, config.path, config.types, fields, values)


def take_config(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take `--config FILE` out of a command line; one that is shipped may be named alone.

    Returns:
        The words that are left, and the file.

    Raises:
        UserError: The file is missing, or --config is there twice.
    """
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
    path = Path(paths[0]) if paths else None
    if path is not None and not path.exists():  # the name of one that is shipped
        name = str(path).removeprefix("configs/").removesuffix(".yaml")
        path = find_configs().get(name, path)
    return rest, path


def _quick_values(
    recipe: str, path: Path | None, file: YamlFile | None, argv: Sequence[str]
) -> dict[str, Any]:
    """Values of the file, and over them the word behind each flag, or true.

    What is checked here, by the generated table, is checked once more with the rest; a recipe that
    the table does not know is checked when it is built.
    """
    fields = table_fields(recipe)
    values = dict(file.values) if file is not None else {}
    if not fields:
        return values
    replaced = {new_name(recipe, key, fields) for key in values if key not in fields}
    replaced |= {key for key, (old, _) in NEW_VALUES.items() if values.get(key) == old}
    for key, value in values.items():
        place = f" ({path}, line {file.lines[key]})" if file is not None else ""
        if key in fields and key not in replaced:
            _check_value(fields[key], value, place)
        elif key not in fields and not is_old(recipe, key, fields):
            raise unknown_key(recipe, key, fields, key + place)
    return values | _flags(recipe, argv, fields)


def _check_value(field: Field, value: Any, place: str) -> Any:
    """The value as the field's constructor takes it.

    Raises:
        UserError: It is no such value; the text says where it stands.
    """
    try:
        return coerce(field, value)
    except MismatchError as error:
        shown = yaml_text(redacted({field.name: value})[field.name])
        raise UserError(f"{field.name}={shown}{place}: {error}.") from error


def _flags(recipe: str, argv: Sequence[str], fields: dict[str, Field]) -> dict[str, Any]:
    """The flags with the word behind each, or true; their names are known."""
    found: dict[str, Any] = {}
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        if not word.startswith("--") or word == "--":
            continue
        flag, equals, value = word.partition("=")
        key = flag[2:].replace("-", "_")
        if key not in fields and key.removeprefix("no_") not in fields:
            raise unknown_key(recipe, key, fields, flag)
        found[key] = value if equals else True if following.startswith("--") else following
    return found


def _file_values(given: CommandLine, fields: dict[str, Field]) -> dict[str, Any]:
    if given.file is None:
        return {}
    lines = given.file.lines

    def where(key: str) -> str:
        return f"{given.path}, line {lines[key]}"

    values = {}
    current, origins = translate(given.recipe, given.file.values, fields, where)
    for key, value in current.items():
        place = where(origins.get(key, key))
        if key not in fields:
            raise unknown_key(given.recipe, key, fields, f"{key} ({place})")
        values[key] = _check_value(fields[key], value, f" ({place})")
    return values


def _override_values(
    recipe: str, overrides: dict[str, Any], fields: dict[str, Field]
) -> dict[str, Any]:
    for key in overrides:
        if key not in fields:
            raise unknown_key(recipe, key, fields, key)
    return {key: _check_value(fields[key], value, "") for key, value in overrides.items()}


def _built(
    recipe: str,
    path: Path | None,
    types: tuple[type, ...],
    fields: dict[str, Field],
    values: dict[str, Any],
) -> Config:
    for field in fields.values():
        if field.required and field.name not in values:
            raise UserError(f"{field.name} is missing; set it in the file or with --{field.name}.")
    if values.get("output_dir") == "":
        raise UserError("output_dir='': must name a folder; leave the key out for the default.")
    filled = with_defaults(recipe, path, types, values)
    script, *others = [construct(cls, filled, list(values)) for cls in types]
    training = next((item for item in others if _is_a(item, "TrainingArguments")), None)
    model = next((item for item in others if _is_a(item, "ModelConfig")), None)
    return Config(recipe, path, types, values, script, training, model)


def _is_a(item: Any, name: str) -> bool:
    # By name, so that a recipe without a trainer need not import transformers (7 s).
    return any(base.__name__ == name for base in type(item).__mro__)
