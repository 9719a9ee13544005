#!/usr/bin/env python3
"""Malformed input of all kinds, and each mistake of the tests; writes docs/benchmarks/input.md.

`.venv/bin/python scripts/bench/input/fuzz.py` tries all of them (minutes); `fuzz KIND NUMBER` tries
some, writes nothing, and of a fault shows the smallest input. tests/fuzz draws them.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.input.mistake_tables import mistake_tables  # noqa: E402
from tests.helpers.fuzz.verdicts import KINDS, SECONDS, tally, warm_up  # noqa: E402

PAGE = ROOT / "docs/benchmarks/input.md"
NUMBERS = {"files": 2200, "rows": 2200, "configurations": 1200, "commands": 1000, "options": 3000}
WHAT = {
    "files": "JSONL, JSON, CSV and Parquet files with accidents in their bytes",
    "rows": "rows of every format, some with values of other types, roles and columns",
    "configurations": "shipped and old YAML files with changed, doubled, misspelt or broken lines",
    "options": "one real option each, with values of every type, odd, huge, negative, empty: those "
    "that are taken are compared with the file, a refusal has to name key and value",
    "commands": "whole command lines of every recipe, which must leave no file behind",
}


def main(arguments: list[str]) -> int:
    """Try all inputs, or some; 1 if there was a fault."""
    hush()
    warm_up()
    if arguments:
        kind, number = arguments
        found, slowest = tally(kind, int(number), raises=True)
        print(f"{kind}: {dict(found)}, slowest {slowest:.1f} s")
        return 0
    mistakes = mistake_tables()
    lines, faults = [], 0
    for kind in KINDS:
        found, slowest = tally(kind, NUMBERS[kind])
        faults += found["fault"]
        cells = [f"{found[name]:,}" for name in ("refused", "right", "fault")]
        tried = sum(found.values())
        lines.append(f"| {WHAT[kind]} | {tried:,} | {' | '.join(cells)} | {slowest:.1f} |")
        print(lines[-1], flush=True)
    PAGE.write_text(
        PAGE_TEXT.format(
            conditions=conditions(COMMAND),
            rows="\n".join(lines),
            total=sum(NUMBERS.values()),
            hypothesis=version("hypothesis"),
            limit=SECONDS,
            mistakes=mistakes,
        ),
        encoding="utf-8",
    )
    return int(faults > 0)


COMMAND = ".venv/bin/python scripts/bench/input/fuzz.py"
PAGE_TEXT = """# Malformed input

{conditions}

## Inputs at random

{total:,} inputs, drawn by hypothesis {hypothesis} without a database, so that they are the same
each time. **Refused** ended with one sentence that names what is wrong. **Right** was read, and
what came out was checked: no bad row is let through, and where bad rows are dropped, the good ones
stay. A **fault** would be a traceback, a message of several lines, a wrong result, a file left
behind, or more than {limit} seconds.

| inputs | tried | refused | right | faults | slowest, s |
|---|---|---|---|---|---|
{rows}

## Mistakes

Each row is a command that was run for this page, with the mistake in it and with what it answered
behind `rlhf RECIPE: error:`. The tests hold the same mistakes and check each answer
(tests/unit/project/test_mistakes.py, test_data_mistakes.py, test_model_mistakes.py,
test_machine_limits.py, tests/recipes/test_refusals.py). **Changed** counts the files and folders
that are new, gone or other than before; where the disk fills during a run, its log stays, and no
half model.

{mistakes}
"""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
