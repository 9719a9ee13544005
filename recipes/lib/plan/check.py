"""The plan at the start of a training recipe: a run that cannot fit stops before anything loads."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config, rebuild
from recipes.lib.distributed.launch import Launch
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.errors import UserError, one_sentence
from recipes.lib.plan.advice import find_changes
from recipes.lib.plan.breakdown import memory_text
from recipes.lib.plan.refusals import no_new_refusals, refusals


@dataclass(kw_only=True)
class PlanArguments:
    """Whether a recipe looks at the memory of the machine before it begins."""

    skip_plan: bool = option(False, "Begin without asking whether the run fits the memory.")


def card_memory() -> int | None:
    """Bytes of the card of this process; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def machine_memory() -> int | None:
    """Bytes of memory that this process may have at most; None where nobody says."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        try:
            found.append(int((Path("/sys/fs/cgroup") / name).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return min(found)


def check_plan(config: Config, has_test: bool = True, num_completions: int = 2) -> None:
    """Stop a run that cannot fit, with advice.

    On a card the whole plan counts, with rows as long as the configuration lets them be. Without
    one only weights, gradients and optimizer count, against all the memory of the machine.

    Args:
        config: The parsed Config of a training recipe.
        has_test: Whether there are rows to test on.
        num_completions: Completions in a row of answers.

    Raises:
        UserError: The run cannot fit.
    """
    if config.script.skip_plan or not is_main_process():
        return
    try:
        said = _refusal(config, has_test=has_test, num_completions=num_completions)
    except UserError:
        return  # what is wrong with a model or a file is told better where it is loaded
    except Exception as error:
        # A model that the plan does not understand may be trained all the same.
        print(
            f"plan: skipped ({type(error).__name__}: {one_sentence(error)[:200]})", file=sys.stderr
        )
        return
    if said is not None:
        raise UserError(said)


def _refusal(config: Config, **rows: Any) -> str | None:
    import torch

    from recipes.lib.plan.planner import plan_of
    from recipes.lib.plan.target import Target

    training = config.training
    launch = Launch.here(training)
    if launch.kind == "zero3":
        # Under it a model is divided while it is built, by all processes together.
        print("plan: skipped (under ZeRO-3; ask rlhf plan)", file=sys.stderr)
        return None
    card = None if training.use_cpu else card_memory()
    autocast = torch.float16 if training.fp16 else torch.bfloat16 if training.bf16 else None
    target = Target(launch, autocast, is_fixed_only=card is None, **rows)
    plan = plan_of(config, target)
    if card is None:
        memory = machine_memory()
        if memory is None or plan.least * launch.num_processes <= memory:
            return None
        return (
            f"model_name_or_path={config.model.model_name_or_path}: weights, gradients and "
            f"optimizer take {memory_text(plan.least * launch.num_processes)} and the machine "
            f"has {memory_text(memory)}; take a smaller model, use_peft, or begin with "
            "--skip_plan true."
        )
    # The tensors alone, without what is assumed of allocator and driver.
    needed = max(phase.allocated for phase in plan.phases)
    if needed <= card:
        return None
    changes, fits = _advice(config, target, card)
    flags = " ".join(change.flag for change in changes)
    remedy = (
        f"add {flags}" if fits else f"even with {flags} it does not" if flags else "no key helps"
    )
    return (
        f"{plan.fullest.name} takes {memory_text(needed)} with {plan.facts['lengths']}, and "
        f"the card has {memory_text(card)}; {remedy} (rlhf plan shows why), or begin with "
        "--skip_plan true."
    )


def _advice(config: Config, target: Any, memory: int) -> tuple[list[Any], bool]:
    from recipes.lib.plan.planner import plan_of
    from recipes.lib.trainers.batch_sizes import set_accumulation

    def planner(changes: dict[str, Any]) -> tuple[Any, Any]:
        changed = rebuild(config, changes)
        if hasattr(changed.script, "global_batch_size"):
            set_accumulation(changed.training, changed.script.global_batch_size)
        return changed, plan_of(changed, target)

    launch = target.launch
    is_allowed = no_new_refusals(
        refusals(config, launch), lambda changed: refusals(changed, launch)
    )
    return find_changes(planner, memory, is_allowed)
