"""Reward functions: finding them, calling them, adding up what they say.

    f(prompts, completions, completion_ids, **columns) -> list[float | None]

Prompts and completions are text, or messages where the prompts are messages. None means that the
function does not apply to that row, which is then left out of the weighted sum. Functions may be
async; those wait for their answers at the same time.

Shapes: B rows, F reward functions.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.named_rewards import is_name, trl_reward


def load_function(reference: str) -> Callable[..., Any]:
    """Find a function by where it is.

    Args:
        reference: `file.py:name`, `package.module:name`, `package.module.name`, or a name that
            TRL's scripts know, such as `accuracy_reward`.

    Returns:
        The function.

    Raises:
        UserError: The file, module or name is not there, or a package that it needs.
    """
    if (reward := trl_reward(reference)) is not None:
        return reward
    place, _, name = reference.rpartition(":" if ":" in reference else ".")
    if not place or not name:
        raise UserError(f"{reference!r} names no function; write file.py:function.")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{reference!r}: {place} has no function {name}.")
    return function


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"reward function file {path} is not there; check the path.")
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs a package that is not installed: {error}.") from error
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be imported ({what}); mend the file.") from error
    return module


def _load_module(name: str) -> Any:
    # As with TRL's scripts, modules beside the configuration are found; installed ones come first.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"module {name} of a function is not there: {error}.") from error


def is_function_reference(name: str) -> bool:
    """Whether a name means a function (`file.py:name`, `module:name`, TRL's) and no model."""
    if Path(name).exists():
        return False
    return ":" in name or is_name(name)
