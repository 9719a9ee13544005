"""What of a plan would be refused at its start, by the table that every run asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from recipes.lib.plan.options import Asked
from recipes.lib.plan.refusal_conditions import Card
from recipes.lib.plan.refusals import TABLE, Refusal, refusals
from recipes.lib.plan.sizes import GIB


def refused_of(config: Any, asked: Asked, memory: int | None) -> list[tuple[Refusal, str]]:
    """The lines of the table that apply to what was asked.

    Args:
        config: The parsed Config of a training recipe.
        asked: The command line, which says how the run is started.
        memory: Bytes of a card; None where none is known.

    Returns:
        The lines, each with what is wrong in keys and values.
    """
    on_cpu = asked.launch.on_cpu or bool(config.training.use_cpu)
    launch = replace(asked.launch, on_cpu=on_cpu)
    if memory is None:
        return refusals(config, launch)
    return refusals(config, launch, Card(memory / GIB, _cards(asked)))


def _cards(asked: Asked) -> int:
    """Cards of a machine; of one that is planned for elsewhere, as many as it has to have."""
    import torch

    if asked.memory is None and torch.cuda.is_available():
        return int(torch.cuda.device_count())
    return max(1, asked.launch.num_processes // asked.launch.num_machines)


def nothing_new(
    refused: list[tuple[Refusal, str]], again: Callable[[Any], list[tuple[Refusal, str]]]
) -> Callable[[Any], bool]:
    """Tells whether a changed configuration is refused for no reason that was not there before.

    Args:
        refused: What is refused without the change.
        again: Finds what is refused of a Config.

    Returns:
        A function of the changed Config.
    """
    before = {line.name for line, _ in refused}

    def is_allowed(config: Any) -> bool:
        return {line.name for line, _ in again(config)} <= before

    return is_allowed


def as_dicts(found: list[tuple[Refusal, str]]) -> list[dict[str, str]]:
    """Refusals in plain values."""
    return [
        {"name": line.name, "wrong": wrong, "reason": line.reason, "remedy": line.remedy}
        for line, wrong in found
    ]


def table_as_dicts() -> list[dict[str, str]]:
    """The whole table in plain values, with where each line is known from."""
    return [
        {"name": line.name, "reason": line.reason, "remedy": line.remedy, "evidence": line.evidence}
        for line in TABLE
    ]
