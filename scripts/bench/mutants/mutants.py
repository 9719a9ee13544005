#!/usr/bin/env python3
"""Breaks PPO in one place at a time and shows that its tests notice (docs/benchmarks/mutants.md).

`.venv/bin/python scripts/bench/mutants/mutants.py` runs all of mutant_list.py beside it in some
minutes on one core; with numbers of items, theirs only, and no page is written. Each mutant is a
patched copy of the package in a temporary folder. The libraries are imported once; a fork of this
process imports the patched package and runs the tests named for the item, up to the first that
fails. What was killed is kept in runs/mutants.json for as long as package and tests stay as they
are, so that a stopped run goes on where it stopped.
"""

import contextlib
import hashlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).resolve().parents[3]
OTHERS = [path for path in sys.path if Path(path or ".").resolve() != ROOT]
sys.path = [str(ROOT), *OTHERS]

from scripts.bench.mutants.mutant_list import MODULES, MUTANTS, Mutant  # noqa: E402

sys.path = OTHERS  # not the package itself: each fork imports its own copy of it

PAGE = ROOT / "docs/benchmarks/mutants.md"
KEPT = ROOT / "runs/mutants.json"
COPIED = ("recipes", "tests", "pyproject.toml", "scripts")
CPU_SECONDS = 200  # for one fork, so that a mutant that never ends is ended


class Witness:
    """Keeps the first test that failed, and what kept tests from a verdict."""

    def __init__(self) -> None:
        self.failed = ""
        self.broken = ""
        self.passed = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test."""
        self.passed += report.passed and report.when == "call"
        if report.failed and "TimeoutExpired" in report.longreprtext:
            self.broken = report.nodeid  # the machine was busy, which says nothing
        elif report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """Note a module that cannot even be imported."""
        if report.failed:
            self.broken = report.nodeid


def preload() -> None:
    """Import what takes seconds and is no part of the package."""
    import accelerate.utils  # noqa: F401
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import numpy  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.feature_extraction.text  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch
    import transformers
    import trl

    torch.set_num_threads(1)
    names = "Trainer AutoModelForCausalLM LlamaForSequenceClassification GPT2LMHeadModel pipeline"
    for name in names.split():
        getattr(transformers, name)
    for name in "ModelConfig SFT Reward DPO KTO RLOO GRPO".split():  # these load on first use
        getattr(trl, name if name == "ModelConfig" else f"{name}Trainer")
    assert "recipes" not in sys.modules


def in_fork(
    work: Callable[[], dict[str, Any]], log: Path, seconds: int = CPU_SECONDS
) -> dict[str, Any]:
    """Do something in a fork of this process, its output in a file.

    Args:
        work: What to do.
        log: Where output goes.
        seconds: Of the processor that it may take; of the clock, five times as many.

    Returns:
        What it returned, or an empty dictionary if it died or did not end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read() if select.select([file], [], [], 5 * seconds)[0] else ""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what it left running
    os.waitpid(child, 0)
    return json.loads(text) if text else {}


def run_tests(
    copy: Path, paths: list[str], keyword: str, stop: bool, plugins: Sequence[object] = ()
) -> dict[str, Any]:
    """Run tests against a copy of the package, in this process."""
    import pytest

    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    import recipes

    assert str(recipes.__file__).startswith(str(copy))
    witness = Witness()
    imported_before = "ignore::pytest.PytestAssertRewriteWarning"  # of plugins, by the parent
    options = ["-q", "-p", "no:cacheprovider", "-W", imported_before, *(["-x"] if stop else [])]
    code = pytest.main([*options, "-k", keyword, *paths], plugins=[witness, *plugins])
    stopped = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
    if code in stopped and not witness.broken:
        witness.broken = "interrupted"  # by an exit or what pytest takes for Ctrl-C
    return vars(witness)


def check_unbroken(copy: Path) -> None:
    """All tests that a mutant names pass on the package as it is."""
    keywords = " or ".join(sorted({f"{mutant.keyword}_" for mutant in MUTANTS}))
    paths = sorted({MODULES[name] for mutant in MUTANTS for name in mutant.modules.split()})
    log = copy / "unbroken.log"
    found = in_fork(lambda: run_tests(copy, paths, keywords, stop=False), log)
    if not found or found["failed"] or found["broken"]:
        raise SystemExit(f"error: tests fail without a mutant.\n{log.read_text()[-3000:]}")
    print(f"unbroken: {found['passed']} tests pass", flush=True)


def verdict_on(mutant: Mutant, copy: Path) -> str:
    """Break the copy, run the tests, mend the copy.

    Returns:
        Name of the test that failed; empty if none did, or if no test came to a verdict.
    """
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise SystemExit(f"error: {mutant.file} has {source.count(mutant.old)} of {mutant.old!r}")
    broken = source.replace(mutant.old, mutant.new)
    compile(broken, mutant.file, "exec")
    path.write_text(broken, encoding="utf-8")
    paths = [MODULES[name] for name in mutant.modules.split()]
    log = copy / "mutant.log"
    try:
        found = in_fork(lambda: run_tests(copy, paths, f"{mutant.keyword}_", stop=True), log)
    finally:
        path.write_text(source, encoding="utf-8")
    if not found or found["broken"]:
        print(f"error: {mutant.what}: no verdict.\n{log.read_text()[-3000:]}", flush=True)
        return ""
    return str(found["failed"])


class Kept:
    """What was killed before, and by which test, for this very code."""

    def __init__(self) -> None:
        code = hashlib.sha256()
        for path in sorted([*(ROOT / "recipes").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]):
            code.update(path.read_bytes())
        self.code = code.hexdigest()
        stored = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
        self.known: dict[str, str] = stored.get(self.code, {})

    def add(self, mutant: Mutant, test: str) -> None:
        """Keep a mutant that was killed."""
        self.known[str(mutant)] = test
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps({self.code: self.known}, indent=1), encoding="utf-8")


def page(rows: list[tuple[Mutant, str]]) -> str:
    """The table as Markdown."""
    sys.path.insert(0, str(ROOT))
    from scripts.bench.conditions import conditions

    killed = sum(bool(test) for _, test in rows)
    lines = [
        "# Mutants of the PPO trainer",
        "",
        "Each row is one place in which the trainer was broken, and the test of the checklist that",
        "noticed. The package as it is passes all of these tests.",
        "",
        conditions("scripts/bench/mutants/mutants.py"),
        f"- {killed} of {len(rows)} killed",
        "",
        "| item | what was broken | killed by test |",
        "|---|---|---|",
    ]
    for mutant, test in rows:
        name = test.rpartition("::")[2].partition("[")[0]
        lines.append(f"| {mutant.item} | {mutant.what} | {f'`{name}`' if name else '**none**'} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run the mutants of all items, or of those given; 1 if one survives."""
    wanted = {int(argument) for argument in arguments}
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.item in wanted]
    preload()
    kept, rows = Kept(), []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for name in COPIED:
            source, leave = ROOT / name, shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=leave)
            else:
                shutil.copy(source, copy / name)
        for mutant in sorted(chosen, key=lambda mutant: "distributed" in mutant.modules):
            began = time.monotonic()
            test = kept.known.get(str(mutant)) or verdict_on(mutant, copy)
            took = time.monotonic() - began
            if test:
                kept.add(mutant, test)
            rows.append((mutant, test))
            print(f"{mutant.item:2} {took:5.1f} s  {mutant.what}: {test or 'SURVIVES'}", flush=True)
        if not wanted:
            check_unbroken(copy)
            rows.sort(key=lambda row: MUTANTS.index(row[0]))
            _, title, drawn = PAGE.read_text(encoding="utf-8").partition("\n## ")  # by drawn.py
            PAGE.write_text(page(rows) + title + drawn, encoding="utf-8")
    return int(any(not test for _, test in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
