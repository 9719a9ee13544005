"""Makes a recipe's dataclasses, with the defaults that depend on the run or the machine.

What the dataclasses refuse is told with the key and value that caused it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from recipes.lib.config.fields import fields_of
from recipes.lib.errors import UserError, one_sentence

# Not eos_token and the like.
SECRET = re.compile(
    r"((^|hub_|hf_|auth_|access_|api_|bearer_)token|password|secret|(api|access)_?key)$",
    re.IGNORECASE,
)
HIDDEN = "(hidden)"
# What the checks of transformers and TRL raise.
CONSTRUCTION_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError, AttributeError)


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
    except CONSTRUCTION_ERRORS as error:
        key = _cause(cls, own, [key for key in given if key in own])
        named = f"{key}={yaml_text(own[key])}: " if key is not None else ""
        raise UserError(f"{named}{_sentence(error)}.") from error


def redacted(value: Any) -> Any:
    """A value without what is secret in it, at any depth: files go into reports and to the Hub."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if SECRET.search(str(key)) and one is not None else redacted(one)
            for key, one in value.items()
        }
    return [redacted(one) for one in value] if isinstance(value, list) else value


def yaml_text(value: Any) -> str:
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
        except CONSTRUCTION_ERRORS:
            continue
        return key
    return None


def _sentence(error: BaseException) -> str:
    # The text of a dataclass may run over several lines, and that of a missing package is a list.
    if isinstance(error, PackageNotFoundError):
        return f"it needs a package that is not installed ({' '.join(str(error.name).split())})"
    if isinstance(error, AttributeError):  # a mapping was looked for in a number, or the like
        return "this is not what it takes; give it the form that its library's documentation has"
    return one_sentence(error)


def with_defaults(
    recipe: str, path: Path | None, types: tuple[type, ...], values: dict[str, Any]
) -> dict[str, Any]:
    """Adds output folder, trackers and precision where the user gave none.

    Args:
        recipe: Name of the recipe.
        path: The configuration file.
        types: The recipe's dataclasses.
        values: What the user gave.

    Returns:
        A new mapping with those keys added that the dataclasses have.
    """
    fields = fields_of(types)
    # disable_tqdm left open would follow the log level, and ours is quiet.
    added: dict[str, Any] = {"report_to": "none", "disable_tqdm": False}
    if "output_dir" in fields and fields["output_dir"].default is None:
        added["output_dir"] = str(Path("runs") / recipe / (path.stem if path else "default"))
    if "bf16" in fields and "fp16" in fields:
        added |= choose_precision(values)
    # `bf16: null` asks for the default, as leaving it out does.
    given = {key: value for key, value in values.items() if (key, value) != ("bf16", None)}
    return {key: value for key, value in added.items() if key in fields} | given


def choose_precision(values: dict[str, Any]) -> dict[str, bool]:
    """Chooses the training precision by hardware unless the user did.

    TRL's configurations turn bf16 on by default, which fails on some cards and crawls on a CPU.

    Args:
        values: What the user gave.

    Returns:
        `bf16` and `fp16`, or nothing where the user chose.
    """
    if values.get("bf16") is not None or values.get("fp16"):
        return {}
    if values.get("use_cpu"):
        return {"bf16": False}
    import torch

    if not torch.cuda.is_available():
        return {"bf16": False}
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return {"bf16": True}
    # Turing and older: fp16 unless it was switched off by name.
    return {"bf16": False, "fp16": "fp16" not in values}
