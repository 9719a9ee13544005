"""The table of options behind `--help`, and the recipes that it is about.

Importing a recipe's dataclasses takes seconds, so their options are kept in help.json;
`scripts/make_help` writes it and a test holds it equal to what that makes of the live dataclasses.
"""

import ast
import functools
import json
import operator
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from recipes.lib.config.fields import Field
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
