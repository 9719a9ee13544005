"""Check: examines a reward model: is it what it is taken for, and what does it like.

Asks for scores of at most 256 pairs that it was not trained on, those of its run or of
`--dataset_name`; without pairs, what needs none. Each check answers fault, remark, fine or not
checked, with its number and threshold.

Writes check.json beside the run's summary.json, and its report.html anew. A fault ends it with exit
code 3.

    rlhf check runs/quickstart/reward
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.doctor.checkup import look, refuse, show
from recipes.lib.doctor.subject import AnswerRows, pairs_of
from recipes.lib.models.folders import TrustArguments, resolve_model
from recipes.lib.recipe.main import launch

POSITIONAL = "run"


@dataclass(kw_only=True)
class RewardCheckArguments(AnswerRows, TrustArguments):
    """What is examined, and on which pairs."""

    run: str | None = option(None, "Run, folder or Hub id of a reward model.")
    batch_size: int = option(32, "Texts at a time.")
    seed: int = option(42, "Of the split that test_fraction makes; that of the training.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (RewardCheckArguments,)


def run(config: Config) -> dict[str, Any]:
    """Examine, write, print.

    Args:
        config: The parsed configuration.

    Returns:
        What check.json holds.

    Raises:
        UserError: The model or the pairs cannot be read.
        FaultError: There is a fault.
    """
    from recipes.lib.report.page import write_report
    from recipes.lib.runs.settings import run_of

    script: RewardCheckArguments = config.script
    name, pairs = str(script.run), None
    if script.dataset_name or script.datasets:
        train, test = pairs_of(script, script.seed)
        pairs = (None, train) if test is None else (train, test)
    report = look(
        name,
        pairs,
        script.batch_size,
        trusted=script.trust_remote_code,
        is_own=pairs is None,
    )
    folder = run_of(resolve_model(name))
    if folder is not None and (folder / "summary.json").is_file():
        write_report(folder)
    show(report)
    refuse(report, name)
    return {"recipe": "check"} | report


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("check", argv)


if __name__ == "__main__":
    raise SystemExit(main())
