"""Says what a training run takes in memory, phase by phase, before anything is loaded.

From the configuration and the shapes of its models alone; no weight is downloaded. If the run does
not fit, it says what to change, the cheapest first, as flags to paste, and what each costs in time.

    rlhf plan --config configs/ppo/qwen3-0.6b-ultrafeedback.yaml --memory 12GB
    rlhf plan --config sft.yaml --recipe sft --accelerate_config fsdp2 --num_processes 4
    rlhf plan --refusals

A run that would be refused at its start (4-bit weights in ZeRO-3's shards) is planned all the same;
the reasons and the ways out follow, and the exit code is 2.
"""

from __future__ import annotations

from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.recipe.help import answer

USAGE = """usage: rlhf plan --config FILE [--memory 24GB] [--key value ...]
       rlhf plan --refusals [--json [FILE]]

  --config FILE             of sft, reward, ppo, dpo, kto, rloo or grpo
  --memory 24GB             of one card; default: that of the visible one
  --num_processes INT       cards that the run is divided among
  --accelerate_config NAME  how it is divided: a file in configs/accelerate, or a path
  --recipe NAME             where the file's folder does not tell it
  --prompt_length INT       tokens of a prompt where the recipe sets no limit (rloo, grpo); 512
  --num_completions INT     completions in a row of answers (reward); 2, those of a pair
  --json [FILE]             the plan in bytes, into a file or on the terminal
  --refusals                the table of what does not go with several processes
  --key value               any key of the recipe, as the recipe takes it"""

REFUSALS_FLAG = "--refusals"


def main(argv: list[str] | None = None) -> int:
    """Runs `rlhf plan`.

    Args:
        argv: The words after `plan`; None takes them from `sys.argv`.

    Returns:
        The exit code: 0 also where the run does not fit, 2 for a mistake of the user and for a
        run that would be refused.
    """
    return answer("plan", f"{(__doc__ or '').strip()}\n\n{USAGE}", argv, _act)


def _act(argv: list[str]) -> int:
    if REFUSALS_FLAG in argv:
        show_refusals(argv)
        return 0
    return 2 if run(argv)["refused"] else 0


def run(argv: list[str]) -> dict[str, Any]:
    """Plan, print, advise.

    Args:
        argv: The words after `plan`.

    Returns:
        The plan in plain values, in bytes, with what would be `refused` at the start, and with
        `memory`, `fits` and `changes` where a memory is known.

    Raises:
        UserError: A flag or the configuration is wrong, or a model is not there.
    """
    from recipes.lib.plan.options import OF_ROWS, parse_config, read_options
    from recipes.lib.verbosity import hush

    options = read_options(argv)
    hush()
    from recipes.lib.plan.check import card_memory
    from recipes.lib.plan.page import show_plan, show_refused
    from recipes.lib.plan.planner import plan_of
    from recipes.lib.plan.refusals import as_dicts, no_new_refusals, plan_refusals
    from recipes.lib.plan.target import Target
    from recipes.lib.recipe.main import parse

    def planner(changes: dict[str, Any]) -> tuple[Any, Any]:
        config, autocast = parse_config(options, parse, changes)
        rows = {name: getattr(options, name) for name in OF_ROWS}
        target = Target(options.launch, autocast, configs=options.configs, **rows)
        return config, plan_of(config, target)

    config, plan = planner({})
    memory = options.memory if options.memory is not None else card_memory()
    refused = plan_refusals(config, options, memory)
    told = plan.as_dict() | {"refused": as_dicts(refused)}
    # Where the terminal gets JSON, the page goes nowhere.
    with redirect_stdout(StringIO()) if options.json == "-" else nullcontext():
        show_plan(plan)
        if memory is not None:
            is_allowed = no_new_refusals(
                refused, lambda changed: plan_refusals(changed, options, memory)
            )
            told |= _against(memory, plan, planner, is_allowed)
        if refused:
            show_refused(refused)
    _write(told, options.json)
    return told


def _against(memory: int, plan: Any, planner: Any, is_allowed: Any) -> dict[str, Any]:
    """Whether the run fits, and what to change; printed, too."""
    from recipes.lib.plan.advice import find_changes
    from recipes.lib.plan.page import show_advice, show_verdict

    told = {"memory": memory, "fits": plan.peak <= memory, "changes": []}
    show_verdict(plan, memory)
    if plan.peak > memory:
        changes, fits = find_changes(planner, memory, is_allowed)
        told["changes"] = [{"key": c.key, "value": c.value, "peak": c.peak} for c in changes]
        told["fits_changed"] = fits
        show_advice(changes, fits, memory)
    return told


def show_refusals(argv: list[str]) -> None:
    """Print the whole table of what is refused.

    Args:
        argv: The words after `plan`.

    Raises:
        UserError: There is more than --refusals and --json.
    """
    from recipes.lib.plan.options import split_plan_flags
    from recipes.lib.plan.page import show_table
    from recipes.lib.plan.refusals import table_as_dicts

    given, rest = split_plan_flags([word for word in argv if word != REFUSALS_FLAG])
    others = [*(f"--{name}" for name in given if name != "json"), *rest]
    if others:
        raise UserError(f"{REFUSALS_FLAG} shows the whole table; leave {others[0]} out.")
    if "json" not in given:
        show_table()
    _write(table_as_dicts(), given.get("json"))


def _write(told: Any, place: str | None) -> None:
    import json

    from recipes.lib.runs.files import write_json

    if place == "-":
        print(json.dumps(told, indent=1))
    elif place is not None:
        try:
            write_json(Path(place), told)
        except OSError as error:
            raise UserError(f"json={place}: cannot be written ({error.strerror}).") from error


if __name__ == "__main__":
    raise SystemExit(main())
