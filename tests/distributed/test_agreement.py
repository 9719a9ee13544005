"""What two processes have to agree on before they enter collective calls, they agree on."""

import os
import subprocess
import sys
from pathlib import Path

from tests.distributed.test_recipes_on_two import search_path

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "agreement_worker.py"


def answers(folder: Path, question: str) -> list[str]:
    """What each of two processes answers."""
    config = str(ROOT / "configs/accelerate/cpu.yaml")
    start = ["accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *start, str(WORKER), question, str(folder)],
        env=os.environ | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [(folder / f"answer{rank}").read_text() for rank in (0, 1)]


def test_a_shard_that_is_not_finite_keeps_every_process_from_saving(tmp_path: Path) -> None:
    told = "the weights themselves are NaN or infinite, and there is no checkpoint"
    assert answers(tmp_path, "not_finite") == [told, told]
