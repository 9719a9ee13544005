"""What becomes of a malformed input: refused in a sentence, right, or a fault of the program."""

import contextlib
import io
import os
import re
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, given, settings

from recipes.lib.config.fields import fields_of
from recipes.lib.config.library_checks import check_training
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.file_rows import to_dataset
from recipes.lib.data.formats import format_of
from recipes.lib.data.row_checks import find_problems
from recipes.lib.data.streaming import load_rows
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import launch, parse
from tests.helpers.fuzz import inputs, options

SECONDS = 10
KINDS = inputs.KINDS | {"options": options.options}


class WrongError(Exception):
    """A result that is not right, or a message that is none."""


class SlowError(BaseException):
    """An input took longer than `SECONDS`; no handler of the program may catch it."""


def warm_up() -> None:
    """Import what takes seconds, which would count against the first inputs."""
    import torch  # noqa: F401
    import transformers
    import trl

    for library, names in (
        (transformers, "Trainer AutoTokenizer AutoConfig AutoModelForCausalLM"),
        (trl, "SFTTrainer RewardTrainer DPOTrainer KTOTrainer RLOOTrainer GRPOTrainer"),
    ):
        for name in names.split():
            getattr(library, name)
    for recipe in inputs.RECIPES:
        inputs.types_of(recipe)
    with contextlib.redirect_stderr(io.StringIO()):
        config = parse("sft", ["--seed", "1", "--optim", "adamw_torch"])
    check_training(
        config.training, config.values | {"report_to": [], "lr_scheduler_type": "linear"}
    )


def verdict(case: Any, folder: Path) -> tuple[str, str]:
    """Try one input.

    Args:
        case: What a strategy of `KINDS` drew.
        folder: An empty folder, which becomes the working folder.

    Returns:
        "refused", "right" or "fault", and for a fault its traceback.
    """
    try:
        with _within(folder), _time_limit(), contextlib.redirect_stderr(io.StringIO()):
            return TRIED[type(case)](case, folder), ""
    except UserError as error:
        text = str(error)
        if re.fullmatch(r"[^\n]{10,}", text):
            return "refused", ""
        return "fault", f"not one sentence: {text!r}"
    except (Exception, SystemExit, SlowError):
        return "fault", traceback.format_exc(limit=-6)


def tally(kind: str, number: int, *, raises: bool = False) -> tuple[Counter[str], float]:
    """Try inputs that hypothesis draws, the same ones whenever its version is the same.

    Args:
        kind: A key of `KINDS`.
        number: Of the inputs.
        raises: Whether a fault ends this with an AssertionError, for the smallest such input that
            hypothesis finds; faults are counted otherwise.

    Returns:
        How many were refused, right and faults, and the seconds of the slowest.
    """
    found: Counter[str] = Counter()
    slowest = 0.0

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=KINDS[kind]())
    def attempt(case: Any) -> None:
        nonlocal slowest
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            told, why = verdict(case, Path(folder).resolve())
            slowest = max(slowest, time.monotonic() - began)
        found[told] += 1
        assert told != "fault" or not raises, why

    attempt()
    return found, slowest


def read_file(case: inputs.File, folder: Path) -> str:
    """Load rows; no bad or test row may be let through to training, and no good one be lost."""
    path = folder / f"rows{case.suffix}"
    data = case.data
    if data is None:
        from datasets import Dataset

        Dataset.from_list(case.rows or [{"a": 1}]).to_parquet(path)
        data = path.read_bytes()
    path.write_bytes(inputs.broken(data, case.accidents))
    args = DataArguments(dataset_name=str(path), **case.keys)
    training = SimpleNamespace(
        seed=0, max_steps=1, dataloader_num_workers=0, ignore_data_skip=False
    )
    rows = load_rows(args, training, lambda data: format_of(data).columns)
    train = to_dataset(list(rows.train)) if args.streaming else rows.train
    splits = [train] if rows.test is None else [train, rows.test]
    columns = format_of(train).columns
    if any(find_problems(split, columns) for split in splits):
        raise WrongError("bad rows were let through")
    seen = [{repr([row[name] for name in columns]) for row in split} for split in splits]
    if len(seen) == 2 and seen[0] & seen[1]:
        raise WrongError(f"test rows {seen[0] & seen[1]} train")
    kept = repr([split.to_list() for split in splits])
    lost = [number for number in case.stays if not re.search(rf"\b{number}\b", kept)]
    if lost:
        raise WrongError(f"good rows {lost} were lost")
    return "right"


def read_configuration(case: inputs.Configuration, folder: Path) -> str:
    """Parse a configuration; what comes out are keys that the recipe has."""
    (folder / "run.yaml").write_bytes(case.data)
    first = inputs.FIRST.get(case.recipe, [])
    forced = {} if first else {"use_cpu": True}
    config = parse(case.recipe, [*first, "--config", "run.yaml"], forced)
    if set(config.values) - set(fields_of(inputs.types_of(case.recipe))):
        raise WrongError(f"unknown keys in {config.values}")
    return "right"


def run_command(case: inputs.Command, folder: Path) -> str:
    """Run a whole command, up to where a model would be loaded that is not there."""
    pair = inputs.good_row("pair", 1)
    row = pair if case.recipe == "data" else pair | {"rejected": pair["chosen"]}
    (folder / "rows.jsonl").write_bytes(inputs.as_bytes([row], ".jsonl"))
    start = ["rows.jsonl"] if case.recipe == "data" else ["--dataset_name", "rows.jsonl"]
    if case.recipe in ("ppo", "rloo", "grpo"):
        start += ["--reward_funcs", "absent.py:f"]
    words = inputs.FIRST.get(case.recipe, []) + start + case.words
    before = sorted(folder.rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = launch(case.recipe, words)
    if sorted(folder.rglob("*")) != before:
        raise WrongError(f"{words} left {sorted(folder.rglob('*'))}")
    if code == 0 and case.recipe == "data":
        return "right"
    last = (err.getvalue().strip().splitlines() or [""])[-1]
    if code != 2 or not last.startswith(f"rlhf {case.recipe}: error: "):
        raise WrongError(f"{words} ended with {code} and {last!r}")
    return "refused"


TRIED: dict[type, Callable[[Any, Path], str]] = {
    inputs.File: read_file,
    inputs.Configuration: read_configuration,
    inputs.Command: run_command,
    options.Option: options.read_option,
}


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise SlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
