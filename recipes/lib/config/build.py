"""Making a recipe's dataclasses; what they refuse is told with the key and value that caused it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from typing import Any

from recipes.lib.config.fields import fields_of
from recipes.lib.errors import UserError

# What the checks of transformers and TRL raise.
REFUSALS = (ValueError, TypeError, KeyError, OSError, ImportError, AttributeError)


def construct(cls: type, values: dict[str, Any], given: Sequence[str]) -> Any:
    """Make one dataclass of a configuration.

    Args:
        cls: The dataclass.
        values: Values of all keys, also those of other dataclasses.
        given: Keys that the user set.

    Returns:
        The instance.

    Raises:
        UserError: The dataclass refuses the values.
    """
    names = fields_of((cls,))
    own = {key: value for key, value in values.items() if key in names}
    try:
        return cls(**own)
    except UserError:
        raise
    except REFUSALS as error:
        key = _cause(cls, own, [key for key in given if key in own])
        named = f"{key}={shown(own[key])}: " if key is not None else ""
        raise UserError(f"{named}{_sentence(error)}.") from error


def shown(value: Any) -> str:
    """A value as YAML would have it, cut where it is long.

    Args:
        value: A plain value.

    Returns:
        At most 60 characters.
    """
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _cause(cls: type, values: dict[str, Any], given: list[str]) -> str | None:
    """The first key of the user without which the dataclass could be made."""
    for key in given:
        try:
            cls(**{name: value for name, value in values.items() if name != key})
        except REFUSALS:
            continue
        return key
    return None


def _sentence(error: BaseException) -> str:
    # The text of a dataclass may run over several lines, and that of a missing package is a list.
    if isinstance(error, PackageNotFoundError):
        return (
            "it needs a package that is not installed (" + " ".join(str(error.name).split()) + ")"
        )
    if isinstance(error, AttributeError):  # a mapping was looked for in a number, or the like
        return "this is not what it takes; give it the form that its library's documentation has"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
