"""What processes have to agree on, asked on as many as the launcher started.

Argument: a folder for the answers, one file for each question and process.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recipes.lib.models.quick_import import import_quickly

import_quickly()

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402

from recipes.lib.distributed.process_exit import end  # noqa: E402
from recipes.lib.distributed.processes import choose_device  # noqa: E402
from recipes.lib.errors import UserError  # noqa: E402
from recipes.lib.recipe.spine import checkpoint_of  # noqa: E402
from recipes.lib.runs import checkpoints  # noqa: E402
from recipes.lib.runs.folder import Run  # noqa: E402
from recipes.lib.trainers.interruption import Stoppable  # noqa: E402


def training_on(accelerator: Any, folder: Path) -> Any:
    """A training that stands behind its third step."""
    training = Stoppable()
    training.accelerator = accelerator
    training.args = SimpleNamespace(world_size=2, device="cpu", output_dir=str(folder))
    training.state = SimpleNamespace(global_step=3)
    training._moment = {"owes_evaluation": False}
    return training


def reads(folder: Path, accelerator: Any) -> str:
    """How often a checkpoint is read when a run goes on from it and when one stops there."""
    read: list[Path] = []
    plain = checkpoints._hash

    def count(path: Path) -> str:
        read.append(path)
        return plain(path)

    checkpoints._hash = count
    checkpoint = folder / "checkpoint-3"
    named = SimpleNamespace(resume_from_checkpoint=str(checkpoint))
    told = [str(checkpoint_of(Run(folder), named)), str(len(read))]
    told += [str(checkpoint_of(Run(folder, checkpoint), named)), str(len(read))]
    told += [training_on(accelerator, folder)._save_where_it_stands(), str(len(read))]
    accelerator.wait_for_everyone()
    # On a disk that several machines share, one may see what another one does not.
    if accelerator.process_index == 0:
        (checkpoint / "optimizer.pt").write_bytes(b"y")
    try:
        checkpoint_of(Run(folder), named)
    except UserError as error:
        told.append(str(error))
    return "\n".join(told)


def not_finite(folder: Path, accelerator: Any) -> str:
    """What is said where the shard of one process has a number that is not finite."""
    training = training_on(accelerator, folder)
    training.model = fully_shard(nn.Linear(4, 4))
    if accelerator.process_index == 1:
        with torch.no_grad():
            training.model.weight.to_local()[0, 0] = float("nan")
    error = UserError("no number for this one")
    error.all_processes_know = True  # type: ignore[attr-defined]
    return training.keep(error)


def main(folder: str) -> None:
    choose_device()
    accelerator = Accelerator(cpu=True)
    for ask in (reads, not_finite):
        there = Path(folder) if ask is reads else Path(folder) / "empty"
        answer = ask(there, accelerator)
        (Path(folder) / f"{ask.__name__}{accelerator.process_index}").write_text(answer)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
    end(0)
