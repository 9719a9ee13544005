"""What processes have to agree on, asked on as many as the launcher started.

Arguments: what is asked, and a folder for the answers, one file for each process.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import fully_shard

from recipes.lib.errors import UserError
from recipes.lib.processes import use_what_is_there
from recipes.lib.stoppable import Stoppable


def not_finite(folder: Path, accelerator: Any) -> str:
    """What is said where the shard of one process has a number that is not finite."""
    training = Stoppable()
    training.model = fully_shard(nn.Linear(4, 4), mesh=None)
    training.accelerator = accelerator
    training.args = SimpleNamespace(world_size=2, device="cpu", output_dir=str(folder))
    training.state = SimpleNamespace(global_step=3)
    training._moment = {"owes_evaluation": False}
    if accelerator.process_index == 1:
        with torch.no_grad():
            training.model.weight.to_local()[0, 0] = float("nan")
    error = UserError("no number for this one")
    error.all_processes_know = True  # type: ignore[attr-defined]
    return training.keep(error)


def main(name: str, folder: str) -> None:
    use_what_is_there()
    accelerator = Accelerator(cpu=True)
    answer = {"not_finite": not_finite}[name](Path(folder), accelerator)
    (Path(folder) / f"answer{accelerator.process_index}").write_text(answer)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
