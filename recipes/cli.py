"""The `rlhf` command: finds a recipe and hands over to it."""

import difflib
import importlib
import sys
from importlib.metadata import version
from pathlib import Path

from recipes.lib.config.option_table import modules_with
from recipes.lib.config.shipped_configs import PACKAGE
from recipes.lib.recipe.help import columns, print_help, print_text

USAGE = "usage: rlhf RECIPE [--config FILE] [--key value ...]"


def main(argv: list[str] | None = None) -> int:
    """Starts the recipe that the first word names.

    Args:
        argv: The words after `rlhf`; None takes them from `sys.argv`.

    Returns:
        The exit code: that of the recipe, or 2 where the recipe is unknown.
    """
    argv = sys.argv[1:] if argv is None else argv
    recipes = find_recipes()
    if not argv or argv[0] in ("-h", "--help"):
        print_text(overview(recipes))
        return 0 if argv else 2
    name, *rest = argv
    if name == "--version":
        print(f"rlhf-recipes {version('rlhf-recipes')}")
        return 0
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else "see rlhf --help."
        print(f"rlhf: error: there is no recipe {name}; {remedy}", file=sys.stderr)
        return 2
    # Help comes without importing the recipe, which may take seconds.
    if print_help(name, rest):
        return 0
    return int(importlib.import_module(f"recipes.{name}").main(rest))


def find_recipes(folder: Path = PACKAGE) -> dict[str, str]:
    """Finds the modules that can be launched.

    Args:
        folder: The package.

    Returns:
        The first sentence of each module's docstring, by name.
    """
    return {
        name: _first_sentence(text)
        for name, text in modules_with({"main"}, folder).items()
        if not name.startswith("_") and name != "cli"
    }


def _first_sentence(paragraph: str) -> str:
    head, stop, _ = paragraph.partition(". ")
    return head + "." if stop else paragraph


def overview(recipes: dict[str, str]) -> str:
    """Writes the text of `rlhf --help`.

    Args:
        recipes: Names and sentences from `find_recipes`.

    Returns:
        Lines of at most 80 columns.
    """
    lines = [USAGE, "", "recipes:", *columns(recipes, indent="  ")]
    return "\n".join([*lines, "", "`rlhf RECIPE --help` shows the options of one."])


if __name__ == "__main__":
    raise SystemExit(main())
