"""Reward functions: finding them, calling them, adding up what they say.

    f(prompts, completions, completion_ids, **columns) -> list[float | None]

Prompts and completions are text, or messages where the prompts are messages. None means that the
function does not apply to that row, which is then left out of the weighted sum.

Shapes: B rows, F reward functions.
"""

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.lib.errors import UserError

RewardFunction = Callable[..., Any]


def load_function(reference: str) -> Callable[..., Any]:
    """Find a function by `file.py:name` or `package.module:name`.

    Args:
        reference: Where the function is.

    Returns:
        The function.

    Raises:
        UserError: The file, module or name is not there.
    """
    place, _, name = reference.rpartition(":")
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
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"module {name} of a function is not there: {error}.") from error


def is_function_reference(name: str) -> bool:
    """Whether a name means a function (`file.py:name`, `module:name`) and no model."""
    return ":" in name and not Path(name).exists()


def score(
    functions: Sequence[RewardFunction],
    weights: Sequence[float],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[list[int]],
    columns: dict[str, list[Any]],
) -> tuple[Tensor, Tensor]:
    """Weighted sum of what all functions say of each row.

    Args:
        functions: The reward functions.
        weights: One weight for each.
        prompts: Prompts.
        completions: Completions.
        completion_ids: Token ids of the completions.
        columns: Further columns of the data set, handed on to the functions.

    Returns:
        Sum of shape (B,) and what each function said of shape (B, F), NaN for None.

    Raises:
        UserError: A function returned something else than one finite number or None for each row,
            or no function applies to a row.
    """
    said_BF = torch.stack(
        [_call(function, prompts, completions, completion_ids, columns) for function in functions],
        dim=1,
    )
    if said_BF.isnan().all(1).any():
        row = int(said_BF.isnan().all(1).nonzero()[0])
        raise UserError(
            f"every reward function returned None for row {row}; one has to apply to each row."
        )
    weights_F = torch.tensor(list(weights), dtype=said_BF.dtype)
    return (said_BF * weights_F).nansum(1), said_BF


def _call(
    function: RewardFunction,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[list[int]],
    columns: dict[str, list[Any]],
) -> Tensor:
    name = function_name(function)
    said = function(
        prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
    )
    if inspect.isawaitable(said):
        import asyncio

        said = asyncio.run(_wait(said))
    if not isinstance(said, (list, tuple, Tensor)) or len(said) != len(prompts):
        got = f"{len(said)} values" if isinstance(said, (list, tuple, Tensor)) else repr(said)
        raise UserError(
            f"reward function {name} returned {got} for {len(prompts)} completions; "
            "return a list with one number for each."
        )
    values = said.tolist() if isinstance(said, Tensor) else list(said)
    for row, value in enumerate(values):
        if value is None:
            values[row] = math.nan
        elif isinstance(value, (str, bool)) or not math.isfinite(float(value)):
            raise UserError(
                f"reward function {name} returned {value!r} for row {row}; "
                "return a finite number, or None where it does not apply."
            )
    return torch.tensor([float(value) for value in values], dtype=torch.float32)


async def _wait(said: Any) -> Any:
    return await said


def function_name(function: RewardFunction) -> str:
    """Name of a reward function in messages and metrics."""
    return getattr(function, "__name__", type(function).__name__)


def distinct_names(functions: Sequence[RewardFunction]) -> list[str]:
    """Names of reward functions for metrics, numbered where several have the same.

    Args:
        functions: The reward functions.

    Returns:
        For example `final`, `final-2`, `short`.
    """
    names: list[str] = []
    for function in functions:
        name, number = function_name(function), 1
        while (numbered := name if number == 1 else f"{name}-{number}") in names:
            number += 1
        names.append(numbered)
    return names
