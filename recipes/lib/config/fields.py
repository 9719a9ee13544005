"""The keys that a recipe understands: the fields of its dataclasses, and their types in words."""

import dataclasses
from collections.abc import Iterable
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclasses.dataclass(frozen=True)
class Field:
    """One key that a recipe understands."""

    name: str
    hint: Any
    choices: tuple[Any, ...] | None
    required: bool
    default: Any  # None where there is none


def option(default: Any, text: str, choices: Iterable[str] | None = None) -> Any:
    """A key of a recipe's dataclass.

    Args:
        default: Its default, or a function that makes it.
        text: What --help says of it.
        choices: The values that it takes; None for any of its type.

    Returns:
        The field.
    """
    metadata = {"help": text} if choices is None else {"help": text, "choices": choices}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def fields_of(types: tuple[type, ...]) -> dict[str, Field]:
    """Collects the fields of dataclasses by name.

    Args:
        types: The dataclasses that a recipe's `arguments()` returns.

    Returns:
        The fields that their constructors take, in order.
    """
    found = {}
    for cls in types:
        hints = get_type_hints(cls) | getattr(cls, "HINTS", {})
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            missing = dataclasses.MISSING
            default = None if field.default is missing else field.default
            if field.default_factory is not missing:
                default = field.default_factory()
            found[field.name] = Field(
                name=field.name,
                hint=hints[field.name],
                choices=tuple(field.metadata.get("choices", ())) or None,
                required=field.default is missing and field.default_factory is missing,
                default=default,
            )
    return found


def type_words(hint: Any) -> str:
    """Says in words what values an annotation takes.

    Args:
        hint: A resolved annotation.

    Returns:
        Words that complete "must be ...".
    """
    parts = sorted(members(hint), key=lambda member: member is NoneType)
    if float in parts:
        parts = [member for member in parts if member is not int]
    return " or ".join(dict.fromkeys(map(_describe_one, parts)))


def _describe_one(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return one_of(get_args(hint))
    if is_enum(hint):
        return one_of([member.value for member in hint])
    if origin is list:
        return f"a list of {_plural(get_args(hint)[0])}"
    if origin is tuple:
        return f"a list of {len(get_args(hint))} {_plural(get_args(hint)[0])}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        NoneType: "null",
        list: "a list",
    }
    return words.get(hint, "a mapping")


def _plural(hint: Any) -> str:
    words = {int: "whole numbers", float: "numbers", str: "texts", bool: "true or false"}
    return words.get(hint, "mappings" if dataclasses.is_dataclass(hint) else type_words(hint))


def one_of(choices: Iterable[Any]) -> str:
    """Lists choices in words.

    Args:
        choices: What may be chosen.

    Returns:
        Words that complete "must be ...".
    """
    return "one of " + ", ".join(str(choice) for choice in choices)


def members(hint: Any) -> list[Any]:
    """Takes a union apart.

    Args:
        hint: A resolved annotation.

    Returns:
        The members of a union; the annotation itself where it is none. `SchedulerType | str` means
        the names of the enum alone: other text would fail much later.
    """
    parts = list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]
    return [part for part in parts if part is not str] if any(map(is_enum, parts)) else parts


def is_enum(hint: Any) -> bool:
    """Says whether an annotation is an enumeration.

    Args:
        hint: A resolved annotation.

    Returns:
        True for a subclass of Enum.
    """
    return isinstance(hint, type) and issubclass(hint, Enum)
