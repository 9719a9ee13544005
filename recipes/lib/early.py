"""Mistakes that are told at once, before the imports of seconds that a configuration needs.

What is checked here is checked once more with the rest; nothing is let through by it. The keys and
their types come from the generated table behind the help.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from recipes.lib.constructing import shown
from recipes.lib.errors import UserError
from recipes.lib.fields import Field
from recipes.lib.help import TABLE
from recipes.lib.renamed_keys import is_old, new_name
from recipes.lib.unknown_keys import unknown_key
from recipes.lib.values import MismatchError, admit

NAMED: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "dict": dict,
    "null": NoneType,
    "list[str]": list[str],
    "list[float]": list[float],
}
GOING_ON = ("resume", "overwrite", "overwrite_output_dir", "resume_from_checkpoint")


def check_early(
    recipe: str,
    path: Path | None,
    file: Any,
    argv: Sequence[str],
    given: dict[str, Any],
    *,
    runs: bool,
) -> None:
    """Check what can be checked without the dataclasses of the recipe.

    Args:
        recipe: Name of the recipe.
        path: The configuration file, or None.
        file: What `read_yaml` read from it, or None.
        argv: The other words of the command line.
        given: Values that win over both.
        runs: Whether the recipe runs next; else paths and folders are not looked at.

    Raises:
        UserError: A key is unknown, a value of the file has a wrong type, the data is not there, or
            the output folder holds a run.
    """
    fields = table_fields(recipe)
    if not fields or (file is not None and "env" in file.values):
        return
    values = dict(file.values) if file is not None else {}
    replaced = {new_name(recipe, key, fields) for key in values if key not in fields}
    for key, value in values.items():
        place = f" ({path}, line {file.lines[key]})"
        if key in fields and key not in replaced:
            _check_value(fields[key], value, place)
        elif key not in fields and not is_old(recipe, key, fields):
            raise unknown_key(recipe, key, fields, key + place)
    flags = _flags(recipe, argv, fields)
    if runs:
        _check_places(recipe, path, fields, values | flags | given)


@functools.cache
def table_fields(recipe: str) -> dict[str, Field]:
    """The keys of a recipe with their types, as the generated table has them.

    Args:
        recipe: Name of the recipe.

    Returns:
        Fields by name, without defaults; the type of some is left open. Empty for a recipe that the
        table does not know.
    """
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {"recipes": {}}
    entry = table["recipes"].get(recipe, {"options": [], "positional": None})
    found = [table["common"][one] if isinstance(one, str) else one for one in entry["options"]]
    fields = {
        one["name"]: Field(one["name"], _hint(one["kinds"]), one.get("choices"), False, None)
        for one in found
    }
    if found and entry["positional"]:
        name = entry["positional"]["name"]
        fields[name] = Field(name, Any, None, False, None)
    return fields


def _hint(kinds: list[Any] | None) -> Any:
    if kinds is None:
        return Any
    members = [NAMED[one] if isinstance(one, str) else Literal[tuple(one)] for one in kinds]
    return functools.reduce(operator.or_, members)


def _check_value(field: Field, value: Any, place: str) -> None:
    try:
        admit(field, value)
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
        is_known = key in fields or key.removeprefix("no_") in fields
        if not is_known and not is_old(recipe, key, fields):
            raise unknown_key(recipe, key, fields, flag)
        found[key] = value if equals else True if following.startswith("--") else following
    return found


def _check_places(
    recipe: str, path: Path | None, fields: dict[str, Field], values: dict[str, Any]
) -> None:
    from recipes.lib.reading import local_path
    from recipes.lib.runs import check_path, is_main_process

    name = values.get("dataset_name")
    if isinstance(name, str) and name:
        local_path(name)
    if not {"overwrite", "max_steps"} <= set(fields) or not is_main_process():
        return
    if any(values.get(key) not in (None, False) for key in GOING_ON):
        return
    folder = values.get("output_dir", Path("runs") / recipe / (path.stem if path else "default"))
    if isinstance(folder, (str, Path)) and str(folder):
        check_path(Path(folder), resume=False, overwrite=False, values={})
