"""Files of other projects given as --config: whose they are, and what their keys are here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from recipes.lib.config.legacy_keys import new_name
from recipes.lib.config.option_table import table_fields
from recipes.lib.config.strict_yaml import YamlFile
from recipes.lib.errors import UserError, note

# By project: keys that tell its files, the key with the method, recipes by its value, and what each
# key is here. docs/migration.md shows the same.
PROJECTS = json.loads(Path(__file__).with_name("foreign_keys.json").read_text(encoding="utf-8"))
# Methods whose files have no key that those of DPO or KTO lack; their names alone tell them.
OTHER_METHOD = re.compile(r"(?<![a-z])(orpo|cpo|simpo)(?![a-z])", re.IGNORECASE)
NAMING_KEYS = ("output_dir", "hub_model_id", "run_name")


def refuse_foreign(recipe: str, path: Path, file: YamlFile) -> None:
    """Refuse a file of LLaMA-Factory or axolotl, or of a method that would be trained as another.

    Args:
        recipe: Name of the recipe.
        path: The file.
        file: Its content.

    Raises:
        UserError: It is one; of a project's file it was told before, key by key, what is what.
    """
    for project, known in PROJECTS.items():
        signs = [key for key in known["signs"] if key in file.values]
        if len(signs) > 1:
            raise _foreign(project, known, recipe, path, file, signs)
    names = {key: str(file.values[key]) for key in NAMING_KEYS if key in file.values}
    names["config"] = "/".join(path.parts[-2:])
    for key, name in names.items() if recipe in ("dpo", "kto") else ():
        other = OTHER_METHOD.search(name)
        if other and recipe not in name.lower():
            place = f" ({path}, line {file.lines[key]})" if key in file.lines else ""
            method = other[0].upper()
            raise UserError(
                f"{key}={name}{place}: is a file for {method} by its name, which no recipe trains; "
                f"take {other[0]} out of that name to train with {recipe.upper()} instead."
            )


def _foreign(
    project: str, known: dict[str, Any], recipe: str, path: Path, file: YamlFile, signs: list[str]
) -> UserError:
    values = {key: value for key, value in file.values.items() if value is not None}
    methods = {key: values[key] for key in known["methods"] if values.get(key)}
    found = [known["methods"][key].get(str(value)) for key, value in methods.items()]
    target = None if None in found else found[0] if found else "sft"
    fields, table = table_fields(target or recipe), known["keys"]
    same = [key for key in values if key in fields and key not in table]
    for key in (key for key in values if key not in same):
        here = table.get(key) or new_name(target or recipe, key, fields) or "none"
        note(f"{key} -> {here}")
    note(f"the same here: {', '.join(same) or 'none'}")
    method = ", ".join(f"{key}: {value}" for key, value in methods.items())
    remedy = f"write one for rlhf {target}" if target else f"no recipe trains {method}"
    return UserError(
        f"--config {path}: is a file of {project} (it has {', '.join(signs)}), which no recipe "
        f"reads; {remedy}, the keys are told above and in docs/migration.md."
    )
