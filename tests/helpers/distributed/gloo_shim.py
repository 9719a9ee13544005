"""For tests only: lets FSDP2 and DeepSpeed run over gloo on the CPU, where accelerate runs DDP.

Import it before anything makes a PartialState. It tells accelerate that gloo is the backend of
several GPUs and that the device is the CPU; what shards, gathers and saves is the real thing.
"""

import os

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import training_args


def _prepare_backend(self: PartialState, *_: object, **__: object) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def _set_device(self: PartialState) -> None:
    self.device = torch.device("cpu")


os.environ["ACCELERATE_USE_CPU"] = "false"  # or both are passed over in silence
os.environ["DS_ACCELERATOR"] = "cpu"
PartialState._prepare_backend = _prepare_backend
PartialState.set_device = _set_device
# A card is asked whether it computes in bf16; the CPU of the shim does.
training_args.is_torch_bf16_gpu_available = lambda: True
