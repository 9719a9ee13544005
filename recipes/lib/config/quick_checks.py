"""Mistakes that are told at once, before the imports of seconds that a configuration needs.

What is checked here is checked once more with the rest; nothing is let through by it. The keys and
their types come from the generated table behind the help.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.lib.config.build import shown
from recipes.lib.config.fields import Field
from recipes.lib.config.legacy_keys import is_old, new_name
from recipes.lib.config.option_table import table_fields
from recipes.lib.config.strict_yaml import YamlFile
from recipes.lib.config.unknown_keys import unknown_key
from recipes.lib.config.values import MismatchError, admit
from recipes.lib.errors import UserError


def check_keys(
    recipe: str, path: Path | None, file: YamlFile | None, argv: Sequence[str]
) -> dict[str, Any]:
    """Check what can be checked without the dataclasses of the recipe.

    Args:
        recipe: Name of the recipe; one that the table does not know is checked when it is built.
        path: The configuration file, or None.
        file: What `read_yaml` read from it, or None.
        argv: The other words of the command line.

    Returns:
        The keys that were given: values of the file, and over them the word behind each flag, or
        true.

    Raises:
        UserError: A key is unknown, or a value of the file has a wrong type.
    """
    fields = table_fields(recipe)
    values = dict(file.values) if file is not None else {}
    if not fields:
        return values
    replaced = {new_name(recipe, key, fields) for key in values if key not in fields}
    for key, value in values.items():
        place = f" ({path}, line {file.lines[key]})" if file is not None else ""
        if key in fields and key not in replaced:
            check_value(fields[key], value, place)
        elif key not in fields and not is_old(recipe, key, fields):
            raise unknown_key(recipe, key, fields, key + place)
    return values | _flags(recipe, argv, fields)


def check_value(field: Field, value: Any, place: str) -> Any:
    """The value as the field's constructor takes it.

    Raises:
        UserError: It is no such value; the text says where it stands.
    """
    try:
        return admit(field, value)
    except MismatchError as error:
        raise UserError(f"{field.name}={shown(value)}{place}: {error}.") from error


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
