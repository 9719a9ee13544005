"""Builds the table of options behind `--help` from the live dataclasses.

Importing those takes seconds, so the table is kept in help.json; `scripts/make_help` writes it and
a test holds it equal to what this module builds.
"""

import ast
import dataclasses
import functools
import importlib
import json
import operator
from enum import Enum
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, Literal, get_args, get_origin

from recipes.lib.config.build import DEFAULTS_IN_WORDS
from recipes.lib.config.fields import Field, fields_of, members
from recipes.lib.config.shipped_configs import PACKAGE

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


TRAINING_RECIPES = ("sft", "reward", "ppo", "dpo", "kto", "rloo", "grpo")
HELP_TABLE = Path(__file__).with_name("help.json")
ROOT = PACKAGE.parent
WORDS = {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT", dict: "JSON"}


def build_table(recipes: list[str]) -> dict[str, Any]:
    """Builds the whole table.

    Args:
        recipes: Names of recipes that have `arguments()`.

    Returns:
        `common`: the options of TrainingArguments by name; `recipes`: for each recipe its
        positional word and its options, those equal to the common ones by name alone.
    """
    from transformers import TrainingArguments

    common = {option["name"]: option for option in _options("", (TrainingArguments,))}
    table = {}
    for recipe in recipes:
        module = importlib.import_module(f"recipes.{recipe}")
        options = _options(recipe, module.arguments())
        positional = _positional(module)
        table[recipe] = {
            "positional": positional,
            "options": [
                option["name"] if option == common.get(option["name"]) else option
                for option in options
                if option["name"] != (positional or {}).get("name")
            ],
        }
    return {"common": common, "recipes": table}


def dump_table(table: dict[str, Any]) -> str:
    """Writes the table as text.

    Args:
        table: From `build_table`.

    Returns:
        JSON, ending in a newline.
    """
    return json.dumps(table, indent=1, sort_keys=True) + "\n"


def modules_with(functions: set[str], folder: Path = PACKAGE) -> dict[str, str]:
    """Finds the modules that define some functions, without importing them.

    Args:
        functions: Names of functions.
        folder: Where the modules are.

    Returns:
        The first paragraph of each module's docstring on one line, by name, sorted.
    """
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if functions <= {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}:
            text = ast.get_docstring(tree) or ""
            found[path.stem] = " ".join(text.split("\n\n")[0].split())
    return found


def recipes_with_arguments() -> list[str]:
    """Names of the recipes that parse their command line with dataclasses, sorted."""
    return list(modules_with({"arguments", "main"}))


def _options(recipe: str, types: tuple[type, ...]) -> list[dict[str, Any]]:
    options = []
    for cls in types:
        known = fields_of((cls,))
        for field in dataclasses.fields(cls):
            if field.init:
                options.append(_option(recipe, cls, field, known[field.name]))
    return options


def _option(recipe: str, cls: type, field: dataclasses.Field[Any], known: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "type": _type_words(known),
        "default": _default_words(known),
        "kinds": _kinds(known.hint),
        "choices": list(known.choices) if known.choices else None,
        "help": " ".join(str(field.metadata.get("help", "")).replace("%%", "%").split()),
        "group": _group(recipe, cls, field.name),
    }


def _group(recipe: str, cls: type, name: str) -> str:
    definer = [base for base in cls.__mro__ if name in vars(base).get("__annotations__", {})][-1]
    trainer = [base for base in cls.__mro__ if base.__name__ == "TrainingArguments"]
    if trainer and definer in trainer[0].__mro__:
        return "training"
    if definer.__name__ in ("RunArguments", "FolderArguments", "PlanArguments"):
        return "run folder"
    if definer.__module__ == f"recipes.{recipe}" or definer.__name__ == "StatedBatch":
        return recipe
    return {"DataArguments": "data", "ModelConfig": "model", "TemplateArguments": "model"}.get(
        definer.__name__, definer.__name__
    )


def _type_words(field: Field) -> str:
    if field.choices:
        return "|".join(map(str, field.choices))
    words: list[str] = []
    found = members(field.hint)
    for member in found:
        if isinstance(member, type) and issubclass(member, Enum):
            return "|".join(item.value for item in member)
        if get_origin(member) is Literal:
            words += [str(choice) for choice in get_args(member)]
        elif get_origin(member) is list and str not in found:
            words.append(f"{WORDS.get(get_args(member)[0], 'JSON')} ...")
        elif get_origin(member) is not list and member is not NoneType:
            words.append(WORDS.get(get_origin(member) or member, "JSON"))
    return "|".join(dict.fromkeys(words))


def _kinds(hint: Any) -> list[Any] | None:
    """The members of an annotation by the names in `NAMED`; None where one has no name."""
    names = {kind: name for name, kind in NAMED.items()}
    kinds: list[Any] = []
    for member in members(hint):
        if isinstance(member, type) and issubclass(member, Enum):
            kinds.append([item.value for item in member])
        elif get_origin(member) is Literal:
            kinds.append(list(get_args(member)))
        else:
            kinds.append(names.get(dict if get_origin(member) is dict else member))
    if any(isinstance(kind, list) and "str" in kinds and False not in kind for kind in kinds):
        kinds.remove("str")  # `SchedulerType | str` means the names of the enum
    return None if None in kinds else kinds


def _default_words(field: Field) -> str | None:
    value = field.default
    if field.name in DEFAULTS_IN_WORDS and (field.name != "output_dir" or value is None):
        return DEFAULTS_IN_WORDS[field.name]
    if field.required:
        return "required"
    if value is None or value in ([], {}):
        return None
    if isinstance(value, Enum):
        return str(value.value)
    # Folders of the project are shown as seen from its root.
    return value.removeprefix(f"{ROOT}/") if isinstance(value, str) else json.dumps(value)


def _positional(module: ModuleType) -> dict[str, str] | None:
    if hasattr(module, "ACTIONS"):
        return {"name": "action", "shown": "|".join(module.ACTIONS)}
    name = getattr(module, "POSITIONAL", None)
    return {"name": name, "shown": name.upper()} if name else None


def read_table() -> dict[str, Any]:
    """The table as it was generated."""
    table: dict[str, Any] = json.loads(HELP_TABLE.read_text(encoding="utf-8"))
    return table


@functools.cache
def table_fields(recipe: str) -> dict[str, Field]:
    """The keys of a recipe with their types, as the generated table has them.

    Args:
        recipe: Name of the recipe.

    Returns:
        Fields by name, without defaults; the type of some is left open. Empty for a recipe that the
        table does not know.
    """
    table = read_table()
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
