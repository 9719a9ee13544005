"""Operators whose result depends on numbers, answered for shapes alone with the largest result.

A mask keeps every token; a number that is asked for is 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meter: Any) -> Any:
    """Run an operator, or say what it gives at most.

    Args:
        func: The operator.
        args: What it was called with.
        kwargs: The same by name.
        meter: Counts what is made on the way.

    Returns:
        The result.
    """
    packet = func.overloadpacket
    if packet is aten._local_scalar_dense and _is_fake(args[0]):
        return _one(args[0])
    if packet in (aten.equal, aten.is_nonzero, aten.allclose) and _is_fake(args[0]):
        return True
    if packet is aten.nonzero and _is_fake(args[0]):
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
    if packet is aten.masked_select and _is_fake(args[0]):
        return args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape).numel())
    if packet is aten.masked_scatter_backward and _is_fake(args[0]):
        return args[0].new_empty(list(args[2]))
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        if any(_is_fake_mask(index) for index in args[1]):
            args = (args[0], _spelled_out(args[1], meter), *args[2:])
    elif func.namespace == "bitsandbytes":
        return _of_bitsandbytes(func, args, kwargs, meter)
    return func(*args, **kwargs)


def _is_fake(tensor: Any) -> bool:
    from torch._subclasses import FakeTensor

    return isinstance(tensor, FakeTensor)


def _is_fake_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and _is_fake(index)


def _one(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _spelled_out(indices: Any, meter: Any) -> list[Any]:
    """Indices with each mask as the positions of all it has, as the operator does inside."""
    out: list[Any] = []
    for index in indices:
        if _is_fake_mask(index):
            number = min(index.numel(), meter.most_kept or index.numel())
            made = [index.new_empty(number, dtype=torch.int64) for _ in range(index.dim())]
            for tensor in made:
                meter.count(tensor)
            out += made
        else:
            out.append(index)
    return out


def _of_bitsandbytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meter: Any) -> Any:
    name = func.overloadpacket._qualified_op_name.partition("::")[2]
    inputs = args[0]
    if name == "gemm_4bit":
        # On CUDA, but for a few rows, the weights are unpacked first, and their scales before.
        unpacked = inputs.new_empty(args[2])
        meter.count(unpacked)
        scales = kwargs.get("absmax_8bit")
        if scales is not None:
            meter.count(scales.new_empty(scales.shape, dtype=torch.float32))
    if name == "int8_vectorwise_quant" and _is_fake(inputs):  # without a column of outliers
        rows = inputs.numel() // inputs.shape[-1]
        rounded = torch.empty_like(inputs, dtype=torch.int8)
        return rounded, inputs.new_empty(rows, dtype=torch.float32), inputs.new_empty(0).long()
    if name == "int8_mixed_scaled_mm" and _is_fake(inputs):
        return inputs.new_empty((*args[1].shape[:-1], args[2].shape[0])), None
    return func(*args, **kwargs)
