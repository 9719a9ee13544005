"""What `rlhf plan` was asked: its own flags, the recipe, and the recipe's configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.lib.config.build import choose_precision
from recipes.lib.config.option_table import TRAINING_RECIPES
from recipes.lib.config.parse import Config, read_command_line, take_config
from recipes.lib.config.values import TRUE_WORDS
from recipes.lib.distributed.launch import Launch, read_launch
from recipes.lib.errors import UserError
from recipes.lib.plan.breakdown import read_memory

OF_ROWS = ("prompt_length", "num_completions")  # what only the rows tell
FLAGS = ("memory", "num_processes", "accelerate_config", "recipe", *OF_ROWS, "json")
PRECISION = ("bf16", "fp16")


@dataclass(frozen=True)
class PlanOptions:
    """The flags of `rlhf plan`.

    Args:
        rest: Words for the recipe.
        recipe: Name of the recipe.
        file: The configuration.
        memory: Bytes of a card; None for that of the visible one.
        launch: How the run is started.
        prompt_length: Tokens of a prompt where the recipe has no limit.
        num_completions: Completions in a row of answers.
        json: File for the plan as JSON; "-" for the terminal, None for none.
    """

    rest: tuple[str, ...]
    recipe: str
    file: Path | None
    memory: int | None = None
    launch: Launch = field(default_factory=Launch)
    prompt_length: int = 512
    num_completions: int = 2
    json: str | None = None

    @property
    def configs(self) -> Path | None:
        """The folder that knows what runs are made from: that of the file, if it is one of its."""
        return self.file.resolve().parent.parent if self.file is not None else None


def read_options(argv: Sequence[str]) -> PlanOptions:
    """Read the command line.

    Args:
        argv: The words after `rlhf plan`.

    Returns:
        What was asked.

    Raises:
        UserError: A flag is wrong, or the recipe cannot be told.
    """
    given, rest = split_plan_flags(list(argv))
    _, file = take_config(rest)
    return PlanOptions(
        rest=tuple(rest),
        recipe=_recipe(given.get("recipe"), file),
        file=file,
        memory=read_memory(given["memory"]) if "memory" in given else None,
        launch=read_launch(given.get("accelerate_config"), _number(given, "num_processes")),
        prompt_length=_number(given, "prompt_length") or 512,
        num_completions=_number(given, "num_completions") or 2,
        json=given.get("json"),
    )


def split_plan_flags(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Take the flags of `rlhf plan` out of a command line.

    Args:
        argv: The words after `rlhf plan`; they are used up.

    Returns:
        Those flags with their values, and the words that are left for the recipe.

    Raises:
        UserError: A value is missing.
    """
    given: dict[str, str] = {}
    rest: list[str] = []
    while argv:
        word = argv.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in FLAGS:
            rest.append(word)
            continue
        if not equals and argv and not argv[0].startswith("--"):
            value = argv.pop(0)
        if name == "json":
            value = value or "-"
        if not value:
            raise UserError(f"--{name}: the value is missing; write --{name} VALUE.")
        given[name] = value
    return given, rest


def _recipe(named: str | None, file: Path | None) -> str:
    if named is not None and named not in TRAINING_RECIPES:
        raise UserError(f"recipe={named}: must be one of {', '.join(TRAINING_RECIPES)}.")
    if named is not None:
        return named
    if file is None:
        raise UserError("config is missing; write rlhf plan --config FILE.")
    # configs/<recipe>/<name>.yaml, quickstart/<recipe>.yaml, runs/<recipe>/<name>/config.yaml
    for name in (file.parent.name, file.stem, file.resolve().parent.parent.name):
        if name in TRAINING_RECIPES:
            return name
    raise UserError(
        f"recipe is missing: neither {file} nor its folder is named after a recipe; add --recipe "
        f"and one of {', '.join(TRAINING_RECIPES)}."
    )


def _number(given: dict[str, str], name: str) -> int | None:
    if name not in given:
        return None
    if not given[name].isdigit() or int(given[name]) < 1:
        raise UserError(f"{name}={given[name]}: must be a whole number of at least 1.")
    return int(given[name])


def parse_config(
    options: PlanOptions, parse: Callable[..., Config], changes: dict[str, Any] | None = None
) -> tuple[Config, Any]:
    """Parse the recipe's configuration, whatever this machine can compute in.

    Args:
        options: The command line.
        parse: Reads the configuration of a recipe, as the recipe itself does.
        changes: Keys to set.

    Returns:
        The Config, with batches as the launch divides them, and the number format of mixed
        precision (None for none).

    Raises:
        UserError: The configuration is wrong.
    """
    import torch

    plain = dict.fromkeys(PRECISION, False)
    config = parse(options.recipe, list(options.rest), plain | (changes or {}))
    _divide(config, options.launch.num_processes)
    given = read_command_line(options.recipe, options.rest).values
    wished = {
        key: value.lower() in TRUE_WORDS if isinstance(value, str) else value
        for key in PRECISION
        if (value := given.get(key)) is not None
    }
    if wished.get("fp16"):
        return config, torch.float16
    if "bf16" in wished:
        return config, torch.bfloat16 if wished["bf16"] else None
    # Where no card is seen: what one of this decade does.
    has_bf16 = not torch.cuda.is_available() or choose_precision({}).get("bf16")
    return config, torch.bfloat16 if has_bf16 else torch.float16


def _divide(config: Config, processes: int) -> None:
    """Set what follows from the number of processes, which this process is not one of."""
    from recipes.lib.trainers.batch_sizes import set_accumulation

    training = config.training
    if hasattr(config.script, "global_batch_size"):
        set_accumulation(training, config.script.global_batch_size, processes)
    elif processes > 1:
        steps = training.gradient_accumulation_steps
        if config.recipe == "ppo" and steps % processes:
            raise UserError(
                f"num_processes={processes}: the {steps} micro-batches of a mini-batch do not "
                "divide among them; change rollout_batch_size or per_device_train_batch_size."
            )
        training.gradient_accumulation_steps = max(1, steps // processes)
        if hasattr(training, "steps_per_generation"):
            training.steps_per_generation = max(1, training.steps_per_generation // processes)
