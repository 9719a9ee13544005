"""What a checkpoint to resume from could run: nothing in a foreign one may.

Weights are safetensors. The pickles of transformers' Trainer (optimizer, scheduler, random states)
are read as numbers only; what asks for more is refused before anything is read. FSDP and DeepSpeed
read parts of their shards as plain pickles, so what those ask for is looked at, too.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError, one_sentence
from recipes.lib.runs.resume import refuse_links

SAFE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLES = (".pt", ".pth", ".bin")
SHARDS = ("pytorch_model_fsdp*", "global_step*")
METADATA = ".metadata"  # of torch.distributed.checkpoint: which shard holds which part of a tensor
# What they are made of; by full names, since a module has more in it than its own.
METADATA_NAMES = {
    *(
        f"torch.distributed.checkpoint.metadata.{name}"
        for name in (
            *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex"),
            *("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        )
    ),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "collections.OrderedDict",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
}
# Of DeepSpeed's shards, beside numbers: structures without code of their own.
OF_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
LATEST = "latest"  # in which DeepSpeed reads the name of the folder with its shards


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
    refuse_links(folder)
    for path in sorted(folder.rglob("*")):
        if path.name == METADATA:
            _refuse(folder, path, _asked_by_metadata(folder, path))
        elif path.name == LATEST and path.is_file():
            _refuse(folder, path, _asked_by_latest(path))
        elif path.suffix in PICKLES and path.name != "training_args.bin":  # which is never read
            _refuse(folder, path, _asked_by_torch(folder, path, path))


def _refuse(folder: Path, path: Path, asked: str | None) -> None:
    if asked is not None:
        raise UserError(
            f"resume_from_checkpoint={folder}: {path.relative_to(folder)} asks for {asked}, which "
            "could run code, and is not read; resume from a checkpoint of your own, or set "
            "trust_checkpoint=true if you know who made it."
        )


def _asked_by_torch(folder: Path, path: Path, content: Any) -> str | None:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    try:
        with safe_globals():
            asked = torch.serialization.get_unsafe_globals_in_checkpoint(content)
    except Exception as error:  # whatever is wrong with it, it is no file of torch.save
        raise UserError(
            f"resume_from_checkpoint={folder}: {path.name} is no checkpoint of PyTorch "
            f"({one_sentence(error)}); copy the folder again."
        ) from error
    allowed = OF_DEEPSPEED if path.parent.name.startswith("global_step") else set()
    return next(iter(sorted(set(asked) - allowed)), None)


def _asked_by_latest(path: Path) -> str | None:
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    folders = {entry.name for entry in path.parent.iterdir() if entry.is_dir()}
    return None if name in folders else f"the folder {name!r}"


class _AskedError(Exception):
    """What a pickle asks for that it may not have."""


class _MetadataReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import torch

        # A dot in a name would lead through one module into another.
        found = getattr(torch, name, None) if module == "torch" and "." not in name else None
        is_number_format = isinstance(found, (torch.dtype, torch.layout, torch.memory_format))
        if "." not in name and (is_number_format or f"{module}.{name}" in METADATA_NAMES):
            return super().find_class(module, name)
        raise _AskedError(f"{module}.{name}")


def _asked_by_metadata(folder: Path, path: Path) -> str | None:
    """What the pickle asks for, and those that it points to: parts that are bytes and no tensor."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    try:
        metadata = _MetadataReader(io.BytesIO(path.read_bytes())).load()
        kinds = metadata.state_dict_metadata
        parts = [
            info
            for index, info in metadata.storage_data.items()
            if isinstance(kinds.get(index.fqn), BytesStorageMetadata)
        ]
        for info in parts:
            shard = (path.parent / info.relative_path).resolve()
            if not shard.is_relative_to(folder.resolve()):
                return f"the file {info.relative_path}"
            content = shard.read_bytes()[info.offset :][: info.length]
            if (asked := _asked_by_torch(folder, shard, io.BytesIO(content))) is not None:
                return asked
    except _AskedError as asked_for:
        return str(asked_for)
    except UserError:
        raise
    except Exception as error:
        return f"something that cannot be read ({one_sentence(error)})"
    return None
