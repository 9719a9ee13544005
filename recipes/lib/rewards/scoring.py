"""Asking reward functions about completions, and adding up what they say.

    f(prompts, completions, completion_ids, **columns) -> list[float | None]

Prompts and completions are text, or messages where the prompts are messages. None means that the
function does not apply to that row, which is then left out of the weighted sum. Functions may be
async; those wait for their answers at the same time.

Shapes: B rows, F reward functions.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.lib.data.problems import PLACE
from recipes.lib.errors import UserError, is_memory

RewardFunction = Callable[..., Any]
LARGEST = torch.finfo(torch.float32).max  # in which rewards are added up


def reward_weights(
    functions: Sequence[RewardFunction], given: Sequence[float] | None
) -> list[float]:
    """One weight for each reward function, 1 where none are given.

    Raises:
        UserError: There are more or fewer weights than functions.
    """
    weights = list(given or [1.0] * len(functions))
    if len(weights) != len(functions):
        names = ", ".join(map(function_name, functions))
        raise UserError(
            f"reward_weights={weights} has {len(weights)} entries for {len(functions)} "
            f"reward_funcs ({names}); give one for each."
        )
    return weights


def as_answers(prompts: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """Completions in the form of their prompts: texts, or messages of the assistant."""
    if isinstance(prompts[0], str):
        return list(texts)
    return [[{"role": "assistant", "content": text}] for text in texts]


def is_async(function: RewardFunction) -> bool:
    """Whether a function is known to be async before it is called, or an object whose call is."""
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def refuse_unrated(values_BF: Sequence[Sequence[float]], places: Sequence[str]) -> None:
    """Refuse a row to which no reward function applies, where all values are NaN."""
    for place, values in zip(places, values_BF, strict=True):
        if all(map(math.isnan, values)):
            raise UserError(
                f"every reward function returned None for {place}; one has to apply to each row."
            )


def weighted_scores(
    functions: Sequence[RewardFunction],
    weights: Sequence[float] | None,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[list[int]],
    columns: dict[str, list[Any]],
) -> tuple[Tensor, Tensor]:
    """Weighted sum of what all functions say of each row.

    Args:
        functions: The reward functions.
        weights: One weight for each; None where nothing is added up, and none has to apply.
        prompts: Prompts.
        completions: Completions.
        completion_ids: Token ids of the completions.
        columns: Further columns of the data set, handed on to the functions; of those with the
            names above the functions get what was sampled, and of `PLACE` nothing.

    Returns:
        Sum of shape (B,) and what each function said of shape (B, F), NaN for None.

    Raises:
        UserError: A function returned something else than one finite number or None for each row,
            or no function applies to a row.
    """
    given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    given, places = without_places(columns | given)
    said = [call_reward(function, given) for function in functions]
    waiting = [i for i, answer in enumerate(said) if inspect.isawaitable(answer)]
    answers = await_rewards([said[i] for i in waiting], [functions[i] for i in waiting])
    for i, answer in zip(waiting, answers, strict=True):
        said[i] = answer
    rows_F = [
        checked_rewards(function, answer, places)
        for function, answer in zip(functions, said, strict=True)
    ]
    said_BF = torch.tensor(rows_F, dtype=torch.float32).T
    if weights is None:
        return said_BF.nansum(1), said_BF
    refuse_unrated(said_BF.tolist(), places)
    weights_F = torch.tensor(list(weights), dtype=said_BF.dtype)
    return (said_BF * weights_F).nansum(1), said_BF


def without_places(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What reward functions are given, and apart from it where the rows stand."""
    numbered = [f"row {row} of the batch" for row in range(len(given["prompts"]))]
    others = {name: values for name, values in given.items() if name != PLACE}
    return others, given.get(PLACE) or numbered


def call_reward(function: RewardFunction, given: dict[str, Any]) -> Any:
    """Call a reward function.

    Args:
        function: The function.
        given: Its arguments by name.

    Returns:
        What it returned, which may be something to wait for.

    Raises:
        UserError: It raised, or a package that it needs is not installed.
    """
    try:
        return function(**given)
    except Exception as error:
        raise _fault(function, error) from error


def await_rewards(
    awaited: Sequence[Awaitable[Any]], functions: Sequence[RewardFunction]
) -> list[Any]:
    """Wait for the answers of async reward functions, all at the same time.

    One event loop on a thread of its own serves the whole process: it works inside a notebook,
    which has a running loop already, and a client that a function keeps stays usable.

    Args:
        awaited: What the functions returned.
        functions: The functions, for messages.

    Returns:
        The answers, in order.

    Raises:
        UserError: A function raised, or a package that it needs is not installed.
    """

    async def one(waited: Awaitable[Any], function: RewardFunction) -> Any:
        try:
            return await waited
        except Exception as error:
            raise _fault(function, error) from error

    async def every() -> list[Any]:
        pairs = zip(awaited, functions, strict=True)
        return list(await asyncio.gather(*(one(waited, function) for waited, function in pairs)))

    if not awaited:
        return []
    future = asyncio.run_coroutine_threadsafe(every(), _event_loop())
    try:
        return future.result()
    finally:
        future.cancel()  # nobody waits any more when a signal came


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async-rewards", daemon=True).start()
    return loop


def _fault(function: RewardFunction, error: Exception) -> Exception:
    """What a reward function raised, in one sentence; what ran out is told by others."""
    if isinstance(error, UserError) or is_memory(error):
        return error
    sentence = " ".join(str(error).split()).rstrip(".")
    if not isinstance(error, ImportError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        return UserError(
            f"reward function {function_name(function)} raised {type(error).__name__}: {sentence} "
            f"({Path(last.filename).name}, line {last.lineno}); mend it, or let it return None "
            "where it does not apply."
        )
    return UserError(
        f"reward function {function_name(function)} needs a package that is not installed: "
        f"{sentence}."
    )


def checked_rewards(function: RewardFunction, said: Any, places: Sequence[str]) -> list[float]:
    """What a reward function said, if it is one number or None for each row.

    Args:
        function: The function, for the message.
        said: What it returned.
        places: Where the rows stand whose completions it was asked about.

    Returns:
        One number for each row, NaN for None.

    Raises:
        UserError: It is something else.
    """
    name = function_name(function)
    if not isinstance(said, (list, tuple, Tensor)) or len(said) != len(places):
        got = f"{len(said)} values" if isinstance(said, (list, tuple, Tensor)) else repr(said)
        raise UserError(
            f"reward function {name} returned {got} for {len(places)} completions; "
            "return a list with one number for each."
        )
    values = said.tolist() if isinstance(said, Tensor) else list(said)
    for row, value in enumerate(values):
        if value is None:
            values[row] = math.nan
        elif not _is_reward(value):
            raise UserError(
                f"reward function {name} returned {value!r} for {places[row]}; "
                "return a finite number, or None where it does not apply."
            )
    return [float(value) for value in values]


def _is_reward(value: Any) -> bool:
    # Of numpy's numbers, too, and of tensors with one number; not of text, which float() reads.
    try:
        return not isinstance(value, (str, bytes, bool)) and abs(float(value)) <= LARGEST
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def function_name(function: RewardFunction) -> str:
    """Name of a reward function in messages and metrics."""
    while isinstance(function, functools.partial):
        function = function.func
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
