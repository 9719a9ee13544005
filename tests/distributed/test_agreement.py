"""What two processes have to agree on before they enter collective calls, they agree on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recipes.lib.runs.checkpoints import seal
from tests.helpers.distributed.runs_on_two import search_path

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests/helpers/distributed/agreement_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what each of two processes answers to both questions."""
    folder = tmp_path_factory.mktemp("agreement")
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir()
    torch.save({}, checkpoint / "optimizer.pt")
    save_file({"w": torch.zeros(1)}, checkpoint / "model.safetensors")
    seal(checkpoint, 3)
    size = (checkpoint / "optimizer.pt").stat().st_size
    (folder / "size").write_text(f"{size:,}")
    config = str(ROOT / "configs/accelerate/cpu.yaml")
    start = ["accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *start, str(WORKER), str(folder)],
        env=os.environ | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def answers(folder: Path, question: str) -> list[str]:
    """What each of two processes answers."""
    return [(folder / f"{question}{rank}").read_text() for rank in (0, 1)]


def test_a_shard_that_is_not_finite_keeps_every_process_from_saving(folder: Path) -> None:
    told = "the weights themselves are NaN or infinite, and there is no checkpoint"
    assert answers(folder, "not_finite") == [told, told]


def test_the_main_process_alone_reads_a_checkpoint_and_tells_the_other(folder: Path) -> None:
    checkpoint = folder / "checkpoint-3"
    of_main, of_other = (told.split("\n") for told in answers(folder, "reads"))
    stands = f"{checkpoint} holds where it stands"
    wrong = (
        f"resume_from_checkpoint={checkpoint}: optimizer.pt has 1 bytes of "
        f"{(folder / 'size').read_text()}; name an older checkpoint."
    )
    # Both files, where the user names it and where a run stops that did not see it written; what
    # was read to find it is not read again.
    assert of_main == [str(checkpoint), "2", str(checkpoint), "2", stands, "4", wrong]
    assert of_other == [str(checkpoint), "0", str(checkpoint), "0", stands, "0", wrong]
