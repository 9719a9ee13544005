"""What FSDP2 makes of weights, as far as lines of the table of refusals rest on it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_weights_of_a_rollout_are_whole_and_have_no_full_tensor() -> None:
    # TRL's module for vLLM calls it of each, and a rollout has unsharded them.
    model: Any = nn.Linear(4, 4)
    before, values = model.weight, model.weight.detach().clone()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert isinstance(model.weight, DTensor)
    assert torch.equal(model.weight.full_tensor(), values)
    model.unshard()
    assert torch.equal(model.weight, values)
    assert not hasattr(model.weight, "full_tensor")
    # And weights that were put aside by their parameters would be put back into none of the model.
    assert before is not model.weight
    with torch.no_grad():
        model.weight.add_(1.0)
        before.copy_(values)
    assert torch.equal(model.weight, values + 1.0)
