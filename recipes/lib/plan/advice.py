"""What to change so that a run fits: the cheapest first, one after the other, planned each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.errors import UserError
from recipes.lib.plan.breakdown import Plan

# Tokens whose training computes as long as the weights take to be read, or unpacked from 4 bits,
# in the three passes of a micro-batch: derived for an H200 and 8B weights, not measured.
READ_TOKENS, UNPACK_TOKENS = 165, 375
LEAST_LENGTH = 64
MOST_TRIES = 24


@dataclass(frozen=True)
class Change:
    """One change of the configuration.

    Args:
        key: The key.
        value: Its new value.
        cost: What it costs in time, and how that is known.
        peak: Bytes on the device with it and the changes before.
    """

    key: str
    value: Any
    cost: str
    peak: int

    @property
    def flag(self) -> str:
        """The flag to paste."""
        shown = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"--{self.key} {shown}"


Planner = Callable[[dict[str, Any]], tuple[Any, Plan]]
Step = tuple[str, Any, Any, str]  # key, value before, value after, cost


def find_changes(
    planner: Planner, memory: int, is_allowed: Callable[[Any], bool] = lambda _: True
) -> tuple[list[Change], bool]:
    """Look for the cheapest changes with which a run fits.

    Args:
        planner: Plans with keys set; gives the Config and the plan.
        memory: Bytes of the card.
        is_allowed: Whether a run with a Config would be started.

    Returns:
        The changes, of a key the last one alone, and whether the run fits with them; then none
        that it would fit without.
    """
    made: dict[str, Change] = {}
    began: dict[str, Any] = {}  # values before the first change
    dead: set[str] = set()
    config, plan = planner({})
    for _ in range(MOST_TRIES):
        phase = plan.fullest.name
        step = None if plan.peak <= memory else _next(config, phase, began, dead)
        if step is None:
            break
        key, now, value, cost = step
        tried = None
        with suppress(UserError):  # a batch that does not divide, a key that the recipe refuses
            tried = planner({name: change.value for name, change in made.items()} | {key: value})
        if not tried or not is_allowed(tried[0]) or _size(tried[1], phase) >= _size(plan, phase):
            dead.add(key)
            continue
        began.setdefault(key, now)
        made.pop(key, None)  # listed where it was last changed, so that peaks go down the list
        made[key] = Change(key, value, cost, tried[1].peak)
        config, plan = tried
    fits = plan.peak <= memory
    return (_needed(planner, made, memory, is_allowed) if fits else list(made.values())), fits


def _needed(
    planner: Planner, made: dict[str, Change], memory: int, is_allowed: Callable[[Any], bool]
) -> list[Change]:
    """The changes but those without which the run fits, too, so that none stands in front."""
    kept = {name: change.value for name, change in made.items()}
    for key in list(made)[:-1]:
        rest = {name: value for name, value in kept.items() if name != key}
        with suppress(UserError):
            config, plan = planner(rest)
            kept = rest if plan.peak <= memory and is_allowed(config) else kept
    firsts = [dict(list(kept.items())[: number + 1]) for number in range(len(kept))]
    peaks = [planner(first)[1].peak for first in firsts]
    return [replace(made[name], peak=peak) for name, peak in zip(kept, peaks, strict=True)]


def _size(plan: Plan, phase: str) -> int:
    return next(one.total for one in plan.phases if one.name == phase)


def _next(config: Config, phase: str, began: dict[str, Any], dead: set[str]) -> Step | None:
    """The cheapest change that is left for a phase."""
    return next((step for step in _offers(config, phase, began) if step[0] not in dead), None)


def _offers(config: Config, phase: str, began: dict[str, Any]) -> Iterator[Step]:
    """What can be changed for a phase, the cheapest first; costs count from the first value."""
    training, model = config.training, config.model
    yield from _batch(config, phase, began)
    if phase == "training" and not training.activation_checkpointing:
        share = "1/2 (4 to 6 FLOPs" if model.use_peft else "1/3 (6 to 8 FLOPs"
        cost = f"training: +{share} a weight and token): the forward pass is made again"
        yield "gradient_checkpointing", False, True, cost
    if model.use_peft and not model.load_in_4bit and not model.load_in_8bit:
        cost = (
            "sampling: up to twice as long (bitsandbytes' own table, H100); training: the time of "
            f"some {UNPACK_TOKENS} tokens more for each micro-batch (roofline of an H200)"
        )
        yield "load_in_4bit", False, True, cost
    optimizer = str(getattr(training.optim, "value", training.optim))
    if "adam" in optimizer and "8bit" not in optimizer:
        cost = "none to speak of, by what it computes; its states are rounded to 8 bits"
        yield "optim", optimizer, "adamw_8bit", cost
    if config.recipe == "ppo" and training.critic != "head":
        cost = (
            "none: a pass of training and one of scoring less; it learns worse "
            "(docs/benchmarks/critics.md)"
        )
        yield "critic", training.critic, "head", cost
    key = "max_completion_length" if hasattr(training, "max_completion_length") else "max_length"
    length = getattr(training, key) or 2048
    if length // 2 >= LEAST_LENGTH:
        cost = "none: there is less to compute; but longer texts are cut, and so learned otherwise"
        yield key, length, length // 2, cost


def _batch(config: Config, phase: str, began: dict[str, Any]) -> Iterator[Step]:
    keys = {"training": "per_device_train_batch_size", "evaluation": "per_device_eval_batch_size"}
    if config.recipe == "ppo":
        keys |= {"sampling": "sampling_batch_size", "scoring": "scoring_batch_size"}
    elif config.recipe == "reward":
        keys |= {"scoring": "scoring_batch_size", "saving": "scoring_batch_size"}
    elif config.recipe in ("rloo", "grpo"):
        keys |= {"sampling": "steps_per_generation", "scoring": keys["training"]}
    key = keys.get(phase, "")
    now = getattr(config.training, key, getattr(config.script, key, 0))
    if now < 2:
        return
    after, before = now // 2, began.get(key, now)
    cost = "little: as many tokens in more, smaller passes without gradient"
    if phase == "sampling":
        cost = (
            f"sampling: up to {before // after} times as long; each step of decoding reads all "
            "weights, however few the rows (roofline)"
        )
    elif phase == "training":
        cost = _cost_of_micro_batches(config, before, after)
    yield key, now, after, cost


def _cost_of_micro_batches(config: Config, before: int, after: int) -> str:
    args = config.training
    width = getattr(args, "max_length", None) or (
        (getattr(args, "max_prompt_length", None) or 512)
        + (getattr(args, "max_completion_length", None) or 512)
    )
    is_packed = bool(config.model.load_in_4bit)
    sides = 2 if config.recipe in ("dpo", "reward") else 1
    tax = (UNPACK_TOKENS if is_packed else READ_TOKENS) / (sides * width)
    what = "unpacked" if is_packed else "read"
    return (
        f"training: about +{100 * tax * (1 / after - 1 / before):.0f} %; the weights are {what} "
        "for more, smaller micro-batches (roofline of an H200)"
    )
