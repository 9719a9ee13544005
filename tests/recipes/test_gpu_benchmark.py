"""The GPU benchmark on tiny shapes: the code that a card will run, on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow  # a script of ours, run before a card is asked for
def test_it_runs_end_to_end_and_prints_its_tables_last(tmp_path: Path) -> None:
    numbers = tmp_path / "gpu.json"
    command = [sys.executable, "scripts/bench/gpu/gpu.py", "--tiny", "--json", str(numbers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(numbers.read_text())
    runs = [part for part in found.values() if "seconds" in part]
    assert len(runs) == 5
    assert all(min(run["seconds"].values()) > 0 for run in runs)
    decoded = [
        row for name, part in found.items() if name.startswith("decode") for row in part["rows"]
    ]
    assert [row["batch"] for row in decoded] == [1, 8, 1, 8]
    assert all(row["graph"] > 0 and row["transformers"] > 0 < row["bound"] for row in decoded)
    planned = [part["planned"] for part in found.values() if "planned" in part]
    assert len(planned) == 12 + 5
    planned = [said for said in planned if said]  # of cards the full shapes alone are planned
    assert len(planned) == 5
    assert all(0 < said["tensors"] < said["card"] for said in planned)
    tables = done.stdout[done.stdout.index("# On a GPU") :]
    assert "| four roles, 4 epochs, graph |" in tables
    assert "| TRL 1.12 | not yet measured |" in tables  # its folder was not named


def test_the_page_says_which_cells_wait_for_a_card() -> None:
    command = [sys.executable, "scripts/bench/gpu/gpu.py", "--empty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (
        "Not yet measured. The command: `.venv/bin/python scripts/bench/gpu/gpu.py" in done.stdout
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    of_numbers = [line for line in rows if "not yet measured" in line]
    assert len(of_numbers) == 12 + 3 + 3 + 8 + 5  # every row but the heads of the five tables
    assert len(rows) - len(of_numbers) == 2 * 5
