"""What a checkpoint to resume from could run: nothing in a foreign one may.

Weights are safetensors. The pickles of transformers' Trainer (optimizer, scheduler, random states)
and the shards of FSDP are read as numbers only; what asks for more is refused before anything is
read. DeepSpeed reads its own shards as plain pickles, so what they ask for is looked at, too.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError, one_sentence

SAFE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLES = (".pt", ".pth", ".bin")  # parts of tensors (.distcp) are read as numbers by PyTorch
SHARDS = ("pytorch_model_fsdp*", "global_step*")
METADATA = ".metadata"  # of torch.distributed.checkpoint: which shard holds which part of a tensor
METADATA_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.tensor")
METADATA_NAMES = {
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "collections.OrderedDict",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
}
# Of DeepSpeed's shards, beside numbers: structures without code of their own.
OF_DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.",
)


def check_checkpoint(folder: Path, is_trusted: bool = False) -> None:
    """Refuse a checkpoint to resume from that could run code.

    Args:
        folder: The checkpoint.
        is_trusted: Whether the user said that it may.

    Raises:
        UserError: It is not there, has no weights in safetensors' format, or a pickle in it asks
            for more than numbers.
    """
    if not folder.is_dir():
        raise UserError(
            f"resume_from_checkpoint={folder}: there is no such folder; name a checkpoint of a run."
        )
    if is_trusted:
        return
    sharded = any(path for kind in SHARDS for path in folder.glob(kind))
    if not sharded and not any(path for kind in SAFE_WEIGHTS for path in folder.glob(kind)):
        raise UserError(
            f"resume_from_checkpoint={folder}: it holds no weights as .safetensors; other formats "
            "can run code and are not read, so name a checkpoint that has them."
        )
    for path in sorted(folder.rglob("*")):
        if path.name == METADATA:
            _refuse(folder, path, _asked_by_metadata(path))
        elif path.suffix in PICKLES and path.name != "training_args.bin":  # which is never read
            _refuse(folder, path, _asked_by_torch(folder, path))


def _refuse(folder: Path, path: Path, asked: str | None) -> None:
    if asked is not None:
        raise UserError(
            f"resume_from_checkpoint={folder}: {path.relative_to(folder)} asks for {asked}, which "
            "could run code, and is not read; resume from a checkpoint of your own, or set "
            "trust_checkpoint=true if you know who made it."
        )


def _asked_by_torch(folder: Path, path: Path) -> str | None:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    try:
        with safe_globals():
            asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # whatever is wrong with it, it is no file of torch.save
        raise UserError(
            f"resume_from_checkpoint={folder}: {path.name} is no checkpoint of PyTorch "
            f"({one_sentence(error)}); copy the folder again."
        ) from error
    allowed = OF_DEEPSPEED if path.parent.name.startswith("global_step") else ()
    return next((name for name in sorted(asked) if not name.startswith(allowed)), None)


class _AskedError(Exception):
    """What a pickle asks for that it may not have."""


class _MetadataReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import torch

        found = getattr(torch, name, None) if module == "torch" else None
        is_number_format = isinstance(found, (torch.dtype, torch.layout, torch.memory_format))
        known = module.startswith(METADATA_MODULES) or f"{module}.{name}" in METADATA_NAMES
        if known or is_number_format:
            return super().find_class(module, name)
        raise _AskedError(f"{module}.{name}")


def _asked_by_metadata(path: Path) -> str | None:
    try:
        _MetadataReader(io.BytesIO(path.read_bytes())).load()
    except _AskedError as asked:
        return str(asked)
    except Exception as error:
        return f"something that cannot be read ({one_sentence(error)})"
    return None
