"""Reads command-line flags: the names come from TRL's TrlParser, the types from our own checks."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from trl import TrlParser

from recipes.lib.config.build import redacted
from recipes.lib.config.fields import Field
from recipes.lib.config.unknown_keys import unknown_key
from recipes.lib.config.values import MismatchError, parse_flag
from recipes.lib.errors import UserError

NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class StrictParser(TrlParser):
    """TrlParser without abbreviations, exits and defaults: it returns only what was given."""

    def __init__(self, types: tuple[type, ...]) -> None:
        super().__init__(types, allow_abbrev=False, add_help=False)
        for action in self._actions:
            action.default = argparse.SUPPRESS
            action.required = False
            action.choices = None
            if action.type is not None:
                action.type = str  # argparse would hide our sentence; see convert

    def error(self, message: str) -> NoReturn:
        """Turns argparse's complaint into ours.

        Args:
            message: What argparse found.

        Raises:
            UserError: Always.
        """
        found = re.match(r"argument (--[\w-]+)[^:]*: (.*)", message, re.DOTALL)
        if not found:
            raise UserError(f"{message}.")
        flag, problem = found.groups()
        if problem.startswith("expected"):
            raise UserError(f"{flag}: a value is missing; write {flag} VALUE.")
        raise UserError(f"{flag}: {problem}.")


def read_flags(
    recipe: str, argv: Sequence[str], types: tuple[type, ...], fields: dict[str, Field]
) -> dict[str, Any]:
    """Reads the flags of a command line.

    Args:
        recipe: Name of the recipe, for the messages.
        argv: The flags and their values.
        types: The recipe's dataclasses.
        fields: Their fields by name.

    Returns:
        The values of the flags that were given, by key.

    Raises:
        UserError: A flag is unknown, abbreviated, given twice, without its value or of a wrong
            type, or a word belongs to no flag.
    """
    parser = StrictParser(types)
    argv = join_negative_numbers(argv)
    _check_names(recipe, argv, parser._option_string_actions, fields)
    namespace, rest = parser.parse_known_args(argv)
    if rest:
        raise UserError(f"{rest[0]!r} belongs to no flag; write --key value.")
    return {key: convert_flag(fields[key], raw) for key, raw in vars(namespace).items()}


def convert_flag(field: Field, raw: str | bool | list[str]) -> Any:
    """Reads what stood behind a flag.

    Args:
        field: The field to fill; its name is that of the flag.
        raw: One word, several, or true for a flag that stands alone.

    Returns:
        The value as the field's constructor takes it.

    Raises:
        UserError: It is no such value.
    """
    if isinstance(raw, bool):  # `--resume` and `--no_x` stand without a value
        return raw
    try:
        if isinstance(raw, list):
            items = [parse_flag(field, text) for text in raw]
            # One word may hold a whole list, as JSON.
            return [one for item in items for one in (item if isinstance(item, list) else [item])]
        return parse_flag(field, raw)
    except MismatchError as error:
        text = redacted({field.name: " ".join(raw) if isinstance(raw, list) else raw})
        raise UserError(f"--{field.name} {text[field.name]}: {error}.") from error


def join_negative_numbers(argv: Sequence[str]) -> list[str]:
    """Writes `--key -1e-5` as one word.

    Args:
        argv: The words of a command line.

    Returns:
        The same words, negative numbers behind their flags.
    """
    # argparse takes "-1e-5" for a flag; "--key=-1e-5" it takes for what it is.
    words: list[str] = []
    for word in argv:
        if NEGATIVE_NUMBER.fullmatch(word) and words and re.fullmatch(r"--[^=]+", words[-1]):
            words[-1] = f"{words[-1]}={word}"
        else:
            words.append(word)
    return words


def _check_names(
    recipe: str, words: Sequence[str], actions: dict[str, Any], fields: dict[str, Field]
) -> None:
    seen: dict[str, str] = {}
    for word in words:
        if not word.startswith("-") or NEGATIVE_NUMBER.fullmatch(word) or word == "-":
            continue
        flag = word.split("=", 1)[0]
        if flag not in actions:
            key = flag.lstrip("-").replace("-", "_")
            raise unknown_key(recipe, key, fields, flag)
        key = actions[flag].dest
        if key in seen:
            raise UserError(f"{flag}: {key} is already set by {seen[key]}; give it once.")
        seen[key] = flag
