"""Finding reward functions: in a file, in a module, or among TRL's own by name."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError, note
from recipes.lib.models.folders import RUNS

# Rewards that TRL's scripts know by their bare names; a dictionary makes one from a factory, with
# the values that those scripts use.
TRL_REWARDS: dict[str, dict[str, int] | None] = {
    "accuracy_reward": None,
    "reasoning_accuracy_reward": None,
    "think_format_reward": None,
    "get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256},
}
NEED_MATH_VERIFY = ("accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward")
READ_MESSAGES = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
HOME = "trl.rewards"
# Where earlier files of this project say that its own functions are.
MOVED = {
    "recipes.lib.tales": "recipes.lib.tasks.tales",
    "recipes.lib.gsm8k": "recipes.lib.tasks.gsm8k",
}


def load_function(reference: str) -> Callable[..., Any]:
    """Find a function by where it is.

    Args:
        reference: `file.py:name`, `package.module:name`, `package.module.name`, a name that TRL's
            scripts know, such as `accuracy_reward`, or `RUN:label` of a classifier.

    Returns:
        The function.

    Raises:
        UserError: The file, module or name is not there, or a package that it needs.
    """
    if (reward := find_trl_reward(reference)) is not None:
        return reward
    if (classifier := classifier_of(reference)) is not None:
        from recipes.lib.rewards.labels import LabelReward

        return LabelReward(*classifier)
    place, _, name = reference.rpartition(":" if ":" in reference else ".")
    if not place or not name:
        raise UserError(f"{reference!r} names no function; write file.py:function.")
    if place in MOVED:
        note(f"{reference} is now {MOVED[place]}:{name}; it is read as that.")
        place = MOVED[place]
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{reference!r}: {place} has no function {name}.")
    return function


def classifier_of(name: str) -> tuple[Path, str] | None:
    """The folder and the label that `RUN:label` stands for, or None where it is something else."""
    place, colon, label = name.rpartition(":")
    for path in (Path(place), RUNS / place) if colon else ():
        for folder in (path / "final", path):
            if (folder / "config.json").is_file():
                return folder, label
    return None


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
    """Whether a name means a function (`file.py:name`, `module:name`, TRL's) and no model.

    Without a colon it may be a name of TRL's scripts or a dotted import path. A Hub id has a slash
    or a hyphen, or no dot; what lies in a folder of that name is a model.
    """
    if Path(name).exists() or is_judge(name):
        return False
    if ":" in name:
        return True
    parts = name.split(".")
    is_path = len(parts) > 1 and all(part.isidentifier() for part in parts)
    return (name in TRL_REWARDS or is_path) and not (RUNS / name).exists()


def is_judge(name: str) -> bool:
    """Whether a name means a language model as a judge: the YAML file that says which."""
    return name.endswith((".yaml", ".yml"))


def find_trl_reward(reference: str) -> Callable[..., Any] | None:
    """Find one of TRL's rewards.

    Args:
        reference: `accuracy_reward`, or after `trl.rewards:` or `trl.rewards.` any reward there.

    Returns:
        The reward function, or None where the reference means something else.

    Raises:
        UserError: TRL has no such reward, it is made from values that a name cannot give, or a
            package that it needs is not installed.
    """
    home, _, name = reference.replace(":", ".").rpartition(".")
    if home != HOME and (home or name not in TRL_REWARDS):
        return None
    import trl.rewards

    found = getattr(trl.rewards, name, None)
    if not callable(found):
        raise UserError(
            f"{reference!r}: {HOME} has no reward {name}; known are {', '.join(TRL_REWARDS)}."
        )
    _check_packages(reference, name)
    if values := TRL_REWARDS.get(name):
        reward: Callable[..., Any] = found(**values)
        return reward
    if name.startswith("get_"):
        raise UserError(
            f"{reference!r} makes a reward and is none itself; write `reward = {name}(...)` into a "
            "file.py and give file.py:reward."
        )
    return _reads_messages(found) if name in READ_MESSAGES else found


def _check_packages(reference: str, name: str) -> None:
    from trl.import_utils import is_math_verify_available

    if name in NEED_MATH_VERIFY and not is_math_verify_available():
        raise UserError(
            f"{reference!r} needs the package math_verify, which is not installed; "
            "pip install 'trl[math-verify]'."
        )


def _reads_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(completions: Sequence[Any], **given: Any) -> Any:
        if completions and isinstance(completions[0], str):
            raise UserError(
                f"reward function {function.__name__} reads messages, but the prompts are plain "
                "text; give prompts as messages."
            )
        return function(completions=completions, **given)

    return called
