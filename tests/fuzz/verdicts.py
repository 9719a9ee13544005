"""What becomes of a malformed input: refused in a sentence, right, or a fault of the program."""

import contextlib
import io
import os
import random
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recipes.lib.arguments import launch, parse
from recipes.lib.data import DataArguments, load_splits
from recipes.lib.errors import UserError
from recipes.lib.fields import fields_of
from recipes.lib.row_checks import find_problems
from recipes.lib.shapes import shape_of
from tests.fuzz import inputs

SECONDS = 10
RECIPES = ("sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo", "evaluate", "feedback", "data")


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
    for recipe in RECIPES:
        _types(recipe)
    with contextlib.redirect_stderr(io.StringIO()):
        parse("sft", ["--seed", "1"])


def verdict(kind: str, number: int, folder: Path) -> tuple[str, str]:
    """Try one input.

    Args:
        kind: A key of `KINDS`.
        number: Makes the input; the same number makes the same one.
        folder: An empty folder, which becomes the working folder.

    Returns:
        "refused", "right" or "fault", and for a fault its traceback.
    """
    rng = random.Random(f"{kind} {number}")
    try:
        with _within(folder), _time_limit(), contextlib.redirect_stderr(io.StringIO()):
            return KINDS[kind](rng, folder), ""
    except UserError as error:
        text = str(error)
        if re.fullmatch(r"[^\n]{10,}", text):
            return "refused", ""
        return "fault", f"not one sentence: {text!r}"
    except (Exception, SystemExit, SlowError):
        return "fault", traceback.format_exc(limit=-6)


def files(rng: random.Random, folder: Path) -> str:
    """A file with accidents in its bytes."""
    suffix = rng.choice(inputs.SUFFIXES)
    name = rng.choice(list(inputs.GOOD))
    rows = [inputs.good_row(name, number) for number in range(rng.randrange(6))]
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows or [{"a": 1}]).to_parquet(path)
        data = path.read_bytes()
    else:
        data = inputs.as_bytes(rng, rows, suffix)
    path.write_bytes(inputs.broken(rng, data))
    return _load(rng, path, inputs.GOOD[name][0], set())


def rows(rng: random.Random, folder: Path) -> str:
    """Rows of which some are spoiled; where those are dropped, the good ones must stay."""
    name = rng.choice(list(inputs.GOOD))
    good = [inputs.good_row(name, number) for number in range(rng.randrange(2, 8))]
    bad = [
        inputs.spoiled(rng, inputs.good_row(name, 100 + number))
        for number in range(rng.randrange(4))
    ]
    mixed = good + bad
    rng.shuffle(mixed)
    suffix = rng.choice([".jsonl", ".json"])
    path = folder / f"rows{suffix}"
    path.write_bytes(inputs.as_bytes(rng, mixed, suffix))
    # A first row of another kind makes the good ones the odd ones.
    stays = set() if mixed[0] in bad or suffix == ".json" else {str(n) for n in range(len(good))}
    return _load(rng, path, inputs.GOOD[name][0], stays)


def configurations(rng: random.Random, folder: Path) -> str:
    """A configuration file that something happened to."""
    recipe, data = inputs.configuration(rng)
    (folder / "run.yaml").write_bytes(data)
    first = {"feedback": ["simulate"], "evaluate": ["runs/x"]}.get(recipe, [])
    config = parse(recipe, [*first, "--config", "run.yaml"], {"use_cpu": True} if not first else {})
    if set(config.values) - set(fields_of(_types(recipe))):
        raise WrongError(f"unknown keys in {config.values}")
    return "right"


def commands(rng: random.Random, folder: Path) -> str:
    """A whole command, up to where a model would be loaded that is not there."""
    recipe = rng.choice(RECIPES)
    pair = inputs.good_row("pair", 1)
    row = pair if recipe == "data" else pair | {"rejected": pair["chosen"]}
    (folder / "rows.jsonl").write_bytes(inputs.as_bytes(rng, [row], ".jsonl"))
    start = ["rows.jsonl"] if recipe == "data" else ["--dataset_name", "rows.jsonl"]
    if recipe in ("ppo", "rloo", "grpo"):
        start += ["--reward_funcs", "absent.py:f"]
    first = {"feedback": ["simulate"], "evaluate": ["runs/x"]}.get(recipe, [])
    words = first + start + inputs.command_line(rng, fields_of(_types(recipe)))
    before = sorted(folder.rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = launch(recipe, words)
    if sorted(folder.rglob("*")) != before:
        raise WrongError(f"{words} left {sorted(folder.rglob('*'))}")
    if code == 0 and recipe == "data":
        return "right"
    last = (err.getvalue().strip().splitlines() or [""])[-1]
    if code != 2 or not last.startswith(f"rlhf {recipe}: error: "):
        raise WrongError(f"{words} ended with {code} and {last!r}")
    return "refused"


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    "files": files,
    "rows": rows,
    "configurations": configurations,
    "commands": commands,
}


def _load(rng: random.Random, path: Path, name: str, stays: set[str]) -> str:
    args = DataArguments(
        dataset_name=str(path),
        dataset_format=name if rng.random() < 0.9 else rng.choice(inputs.FORMATS),
        on_bad_rows=rng.choice(["refuse", "drop"]),
        test_fraction=rng.choice([0.0, 0.0, 0.0, 0.5]),
    )
    train, test = load_splits(args, 0, lambda data: shape_of(data).columns)
    splits = [train] if test is None else [train, test]
    columns = shape_of(train).columns
    if any(find_problems(split, columns) for split in splits):
        raise WrongError("bad rows were let through")
    kept = repr([split.to_list() for split in splits])
    lost = [number for number in stays if not re.search(rf"\b{number}\b", kept)]
    if lost and args.dataset_format == name:
        raise WrongError(f"good rows {lost} were lost")
    return "right"


def _types(recipe: str) -> tuple[type, ...]:
    import importlib

    types: tuple[type, ...] = importlib.import_module(f"recipes.{recipe}").arguments()
    return types


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
