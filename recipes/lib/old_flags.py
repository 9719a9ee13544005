"""Old keys that are given as flags: translated, left out or refused as those of a file are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.fields import Field
from recipes.lib.flags import convert
from recipes.lib.renamed_data import BESIDE
from recipes.lib.renamed_keys import is_old, new_name, translate
from recipes.lib.renamed_special import SPECIAL
from recipes.lib.strict_yaml import parse_scalar
from recipes.lib.unknown_keys import unknown_key
from recipes.lib.values import MismatchError, admit

Fields = dict[str, Field]
WHERE = "on the command line"


def take_old_flags(
    recipe: str, words: Sequence[str], fields: Fields
) -> tuple[list[str], dict[str, list[str]]]:
    """Separate the flags of old keys from the others.

    Args:
        recipe: Name of the recipe.
        words: The flags and their values.
        fields: Today's keys of the recipe.

    Returns:
        The words that are left, and the words behind each old key.

    Raises:
        UserError: An old key is given twice.
    """
    rest: list[str] = []
    old: dict[str, list[str]] = {}
    flags: dict[str, str] = {}
    into = rest
    for word in words:
        if not word.startswith("--"):
            into.append(word)
            continue
        flag, equals, value = word.partition("=")
        key = flag[2:].replace("-", "_")
        if not is_old(recipe, key, fields):
            into = rest
            into.append(word)
            continue
        if key in old:
            raise UserError(f"{flag}: {key} is already set by {flags[key]}; give it once.")
        flags[key] = flag
        into = old[key] = [value] if equals else []
    return rest, old


def translate_flags(
    recipe: str,
    values: dict[str, Any],
    old: dict[str, list[str]],
    fields: Fields,
    beside: dict[str, Any],
) -> dict[str, Any]:
    """Bring old flags to today's keys, with the remarks and refusals of files.

    Args:
        recipe: Name of the recipe.
        values: The values of the other flags.
        old: The words behind each old key.
        fields: Today's keys of the recipe.
        beside: The values of the file, which flags win over.

    Returns:
        The values of all flags by today's keys.

    Raises:
        UserError: An old key cannot be translated, or its value is of a wrong type.
    """
    given = values | {key: _value(recipe, key, words, fields) for key, words in old.items()}
    current, origins = translate(recipe, given, fields, lambda _: WHERE, beside)
    for key, value in current.items():
        if key not in fields:
            raise unknown_key(recipe, key, fields, f"--{key}")
        try:
            current[key] = admit(fields[key], value)
        except MismatchError as error:
            raise UserError(f"--{origins.get(key, key)} {value!r}: {error}.") from error
    return current


def _value(recipe: str, key: str, words: list[str], fields: Fields) -> Any:
    name = new_name(recipe, key, fields)
    if name is not None and key not in SPECIAL:
        field = dataclasses.replace(fields[name], name=key)
        return convert(field, _raw(field, key, words))
    found = [_plain(key, word) for word in words]
    if key in BESIDE:
        return found
    return True if not found else found[0] if len(found) == 1 else found


def _raw(field: Field, key: str, words: list[str]) -> str | bool | list[str]:
    if len(words) == 1:
        return words[0]
    if not words and "bool" in str(field.hint):
        return True
    if not words:
        raise UserError(f"--{key}: a value is missing; write --{key} VALUE.")
    if "list" in str(field.hint):
        return words
    raise UserError(f"{words[1]!r} belongs to no flag; write --key value.")


def _plain(key: str, word: str) -> Any:
    if word == "None":
        return None
    try:
        return json.loads(word) if word[:1] in ("{", "[") else parse_scalar(word)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--{key} {word[:60]}: cannot be read; write a value or JSON.") from error
