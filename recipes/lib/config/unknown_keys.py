"""The error for a key that a recipe does not have, with the nearest one that it has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from recipes.lib.config.legacy_keys import new_name
from recipes.lib.errors import UserError


def unknown_key(recipe: str, key: str, known: Iterable[str], shown: str) -> UserError:
    """Makes the error for a key that no dataclass has.

    Args:
        recipe: Name of the recipe.
        key: The unknown key.
        known: All keys of the recipe.
        shown: How and where the user wrote it.

    Returns:
        The error; its text names the nearest known key where one is near.
    """
    if recipe == "rloo" and key in ("environment", "tools"):
        return UserError(f"{shown}: RLOO has one turn; use ppo or grpo for {key}.")
    names = sorted(known)
    renamed = new_name(recipe, key, names)
    if renamed is not None:
        return UserError(f"{shown}: is called {renamed} now; write that.")
    longer = sorted((name for name in names if key and name.startswith(key)), key=len)
    near = longer[:1] or difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if near:
        return UserError(f"{shown}: {recipe} has no such key; the nearest is {near[0]}.")
    return UserError(f"{shown}: {recipe} has no such key; see rlhf {recipe} --help_all.")
