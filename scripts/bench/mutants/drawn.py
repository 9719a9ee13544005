#!/usr/bin/env python3
"""Breaks the code outside lib/ppo in 200 places drawn at random, and shows which tests notice.

`.venv/bin/python scripts/bench/mutants/drawn.py` first runs the tests of tests/unit once and notes
which lines each of them runs. Every mutant then meets the tests that run its line, those of its
room first and quick ones before slow ones, up to the first that fails. As in mutants.py, each
mutant is a patched copy of what is committed, and a fork of one process with the libraries loaded.
Verdicts are appended to runs/drawn.jsonl, where a stopped run goes on, and runs/drawn.md has the
table. `drawn.py 31 tests/unit/data/test_messages.py` tries mutant 31 alone, against those tests.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

from scripts.bench.mutants.changes import Change, draw  # noqa: E402
from scripts.bench.mutants.mutants import in_fork, preload, run_tests  # noqa: E402

SEED = 20261129
COUNT = 200
SECONDS = 60  # of the processor, for the tests of a mutant
CHOSEN_SECONDS = 25  # what its tests take without it, and while their lines are noted
OPTIMIZED = 1  # the flag of the code of functions, unlike that of modules and classes
# Tests of the repository's files: they run none of the package's code, or in other processes.
ABOUT_FILES = (
    "test_docs test_floors test_gate test_readme test_scaling_page test_slurm_script "
    "test_structure test_wheel"
).split()
REACH = ROOT / "runs/reach.jsonl"
VERDICTS = ROOT / "runs/drawn.jsonl"


class Reach:
    """Notes for every test what it costs and which changes it would run into."""

    def __init__(self, copy: Path, changes: list[Change]) -> None:
        self.prefix = f"{copy}/recipes/"
        self.places: dict[str, dict[int, set[int]]] = {}
        self.modules: dict[str, set[int]] = {}
        for number, change in enumerate(changes):
            file = str(copy / change.file)
            if not change.in_function:  # run at import: any test of the module may notice
                self.modules.setdefault(file, set()).add(number)
            for line in range(change.first, change.last + 1):
                self.places.setdefault(file, {}).setdefault(line, set()).add(number)
        self.seen: set[tuple[CodeType, int]] = set()
        self.tests: dict[str, dict[str, Any]] = {}

    def enter(self, frame: FrameType, event: str, argument: object) -> Any:
        """Called by Python at the beginning of each function."""
        code = frame.f_code
        if code.co_flags & OPTIMIZED and code.co_filename.startswith(self.prefix):
            return self.step
        return None

    def step(self, frame: FrameType, event: str, argument: object) -> Any:
        """Called by Python before each line."""
        self.seen.add((frame.f_code, frame.f_lineno))
        return self.step

    def pytest_configure(self) -> None:
        """Let what is compiled be kept for the mutants."""
        sys.dont_write_bytecode = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin with a test."""
        self.seen, self.began = set(), sum(os.times()[:4])
        threading.settrace(self.enter)
        sys.settrace(self.enter)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note whether a test passes."""
        test = self.tests.setdefault(report.nodeid, {"passed": True})
        test["passed"] = test["passed"] and report.passed

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note what a test came by."""
        sys.settrace(None)
        reached, near = set(), set()
        for code, line in self.seen:
            reached |= self.places.get(code.co_filename, {}).get(line, set())
            near |= self.modules.get(code.co_filename, set())
        seconds = round(sum(os.times()[:4]) - self.began, 2)
        self.tests[nodeid] |= {
            "seconds": seconds,
            "reached": [*reached],
            "near": [*(near - reached)],
        }


def note_reach(copy: Path, changes: list[Change], files: list[str]) -> dict[str, dict[str, Any]]:
    """Which changes each test runs into, of all test files; kept in a file of runs/."""
    known = _lines(REACH)
    done = {line["file"] for line in known}
    for file in files:
        if file in done:
            continue
        began = time.monotonic()

        def work(file: str = file) -> dict[str, Any]:
            reach = Reach(copy, changes)
            run_tests(copy, [file], "", stop=False, plugins=[reach])
            path = copy / "reach.json"  # more than a pipe takes
            path.write_text(json.dumps(reach.tests), encoding="utf-8")
            return {"path": str(path)}

        found = in_fork(work, copy / "reach.log", seconds=600)
        tests = json.loads(Path(found["path"]).read_text(encoding="utf-8")) if found else {}
        known.append({"file": file, "tests": tests})
        _append(REACH, known[-1])
        failed = [name for name, test in tests.items() if not test["passed"]]
        print(f"{file}: {len(tests)} tests, {time.monotonic() - began:.0f} s", failed, flush=True)
    return {name: test for line in known for name, test in line["tests"].items()}


def tests_for(number: int, change: Change, reach: dict[str, dict[str, Any]]) -> list[str]:
    """The tests that meet a mutant, most specific and quickest first."""

    def order(name: str) -> tuple[bool, bool, bool, float]:
        room = Path(change.file).parent.name
        far = number not in reach[name]["reached"]
        return far, "tests/unit" not in name, f"unit/{room}/" not in name, reach[name]["seconds"]

    chosen, seconds = [], 0.0
    meeting = [name for name, test in reach.items() if number in test["reached"] + test["near"]]
    files = {name.partition("::")[0] for name in meeting if "tests/unit" in name}
    beside = [name for name in reach if name.partition("::")[0] in files and name not in meeting]
    for name in [*sorted(meeting, key=order), *sorted(beside, key=order)]:
        test = reach[name]
        if test["passed"] and seconds + test["seconds"] <= CHOSEN_SECONDS:
            seconds += test["seconds"]
            chosen.append(name)
    return chosen


def verdict(copy: Path, change: Change, tests: list[str]) -> dict[str, Any]:
    """Break the copy, run tests, mend the copy."""
    path = copy / change.file
    source, times = path.read_text(encoding="utf-8"), path.stat()
    if not tests:
        return {"result": "no test runs it", "tests": 0, "seconds": 0.0}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path.write_text(change.applied(source), encoding="utf-8")
    try:
        log = copy / "mutant.log"
        found = in_fork(lambda: run_tests(copy, tests, "", stop=True), log, seconds=SECONDS)
    finally:
        path.write_text(source, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = "survives"
    if not found:
        result = "hangs" if seconds > SECONDS - 5 else "dies"
    elif found["failed"] or found["broken"]:
        result = found["failed"] or found["broken"]
    return {"result": result, "tests": len(tests), "seconds": round(seconds, 1)}


def copied(folder: Path) -> Path:
    """A copy of the repository's files, a repository itself, beside what is shared."""
    copy = folder / "copy"
    copy.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a"]
    tracked = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x"], cwd=copy, input=tracked.stdout, check=True)
    for line in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *line], cwd=copy, check=True)
    if (ROOT.parent / "shared").exists():
        (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
    return copy


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _test_files() -> Iterator[str]:
    for path in sorted((ROOT / "tests/unit").rglob("test_*.py")):
        if path.stem not in ABOUT_FILES:
            yield path.relative_to(ROOT).as_posix()


def table(changes: list[Change]) -> str:
    """The newest verdict on every mutant, in Markdown."""
    found = {line["number"]: line["result"] for line in _lines(VERDICTS)}
    lines = ["| | place | before -> after | killed by |", "|---|---|---|---|"]
    for number, change in enumerate(changes):
        place = f"{change.file.removeprefix('recipes/')}:{change.line}"
        said = f"`{_short(change.before)}` -> `{_short(change.after)}`"
        lines.append(f"| {number} | {place} | {said} | {found.get(number, '')} |")
    return "\n".join(lines) + "\n"


def _short(code: str) -> str:
    """Code as it fits a table."""
    line = " ".join(code.split()).replace("|", "\\|").replace("`", "'")
    return line if len(line) <= 60 else f"{line[:57]}..."


def main(arguments: list[str]) -> int:
    """Try every mutant that has no verdict yet, or one against the tests that are named."""
    changes = draw(ROOT, COUNT, SEED)
    known = {line["mutant"] for line in _lines(VERDICTS)}
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder).resolve())
        os.environ["PYTHONPATH"] = str(copy)
        preload()
        if arguments:
            tests = {int(arguments[0]): arguments[1:]}
        else:
            reach = note_reach(copy, changes, list(_test_files()))
            wanted = [n for n, change in enumerate(changes) if str(change) not in known]
            tests = {number: tests_for(number, changes[number], reach) for number in wanted}
        for number, chosen in tests.items():
            change = changes[number]
            found = verdict(copy, change, chosen)
            _append(VERDICTS, {"number": number, "mutant": str(change), **found})
            print(number, change, found, flush=True)
    (ROOT / "runs/drawn.md").write_text(table(changes), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
