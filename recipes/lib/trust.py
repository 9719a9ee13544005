"""What of a foreign folder is read, and what of the user's secrets is written: nothing that runs.

Code beside a model runs only where a run is told to trust it, which no later run inherits. Weights
are safetensors. A checkpoint also holds pickles of transformers' Trainer (optimizer, scheduler,
random states), which are read as numbers only; one that asks for more is refused before anything
is read. Tokens stay in the environment.
"""

from __future__ import annotations

from pathlib import Path

from recipes.lib.errors import UserError

SAFE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLES = ("*.pt", "*.pth", "*.bin")


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint to resume from that could run code.

    Args:
        folder: The checkpoint.

    Raises:
        UserError: It is not there, has no weights in safetensors' format, or a pickle in it asks
            for more than numbers.
    """
    if not folder.is_dir():
        raise UserError(
            f"resume_from_checkpoint={folder}: there is no such folder; name a checkpoint of a run."
        )
    sharded = any(folder.glob("pytorch_model_fsdp*")) or any(folder.glob("global_step*"))
    if not sharded and not any(path for kind in SAFE_WEIGHTS for path in folder.glob(kind)):
        raise UserError(
            f"resume_from_checkpoint={folder}: it holds no weights as .safetensors; other formats "
            "can run code and are not read, so name a checkpoint that has them."
        )
    for path in sorted(path for kind in PICKLES for path in folder.glob(kind)):
        if path.name != "training_args.bin":  # of transformers' Trainer, which never reads it
            _check_pickle(path)


def _check_pickle(path: Path) -> None:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    try:
        with safe_globals():
            asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # whatever is wrong with it, it is no file of torch.save
        raise UserError(
            f"resume_from_checkpoint={path.parent}: {path.name} is no checkpoint of PyTorch "
            f"({' '.join(str(error).split()).rstrip('.')}); copy the folder again."
        ) from error
    if asked:
        raise UserError(
            f"resume_from_checkpoint={path.parent}: {path.name} asks for {sorted(asked)[0]}, which "
            "could run code, and is not read; resume from a checkpoint of your own."
        )
