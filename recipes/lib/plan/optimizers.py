"""Bytes of optimizers' states: the real optimizer is made on paper for a weight of each shape."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

LEAST_PAGED = 100_000  # numbers in a weight whose state bitsandbytes may page to the host
# Copies of the trainable weights that a step makes on the way, where it works on lists of tensors.
STEP_COPIES = {"adamw_torch": 1}


def state_bytes(training: Any, trained: nn.Module) -> int:
    """Bytes of the optimizer's states on the device after its first step.

    Args:
        training: The TrainingArguments.
        trained: The module whose trainable weights are moved.

    Returns:
        Bytes; what a paged optimizer may keep on the host is left out.
    """
    from transformers import Trainer

    made, kwargs = Trainer.get_optimizer_cls_and_kwargs(training)
    embeddings = {id(part.weight) for part in trained.modules() if isinstance(part, nn.Embedding)}
    shapes = Counter(
        (tuple(p.shape), p.dtype, id(p) in embeddings)
        for p in trained.parameters()
        if p.requires_grad
    )
    tables: dict[str, int] = {}
    total = 0
    for (shape, dtype, is_embedding), number in shapes.items():
        weight = nn.Parameter(torch.empty(shape, dtype=dtype))
        state = _state_of(made, kwargs, weight, is_embedding)
        paged = kwargs.get("is_paged") and weight.numel() >= LEAST_PAGED
        for name, value in state.items():
            if not isinstance(value, Tensor) or (paged and name in ("state1", "state2")):
                continue
            size = value.untyped_storage().nbytes()
            if name.startswith("qmap"):  # shared by all weights
                tables[name] = size
            else:
                total += number * size
    return total + sum(tables.values())


def step_bytes(training: Any, trainable: int) -> int:
    """Bytes that a step of the optimizer takes on the way.

    Args:
        training: The TrainingArguments.
        trainable: Bytes of the trainable weights.

    Returns:
        Bytes; none for what works in place.
    """
    return STEP_COPIES.get(str(getattr(training.optim, "value", training.optim)), 0) * trainable


def _state_of(made: Any, kwargs: dict[str, Any], weight: Any, is_embedding: bool) -> dict[str, Any]:
    is_bitsandbytes = "optim_bits" in kwargs
    # A fused step has the same states and needs a card; paging does, too.
    kwargs = {name: value for name, value in kwargs.items() if name not in ("fused", "is_paged")}
    if is_embedding and kwargs.get("optim_bits") == 8:
        kwargs["optim_bits"] = 32  # as Trainer has it
    optimizer = made([weight], **kwargs)
    weight.grad = torch.empty_like(weight)
    if not is_bitsandbytes:
        optimizer.step()
        return dict(optimizer.state[weight])
    # Its register is one for all optimizers of a process, by number: others' weights are in it.
    optimizer.mng = SimpleNamespace(index2config={}, pid2config={})
    optimizer.init_state(optimizer.param_groups[0], weight, 0, 0)
    return dict(optimizer.state[weight])
