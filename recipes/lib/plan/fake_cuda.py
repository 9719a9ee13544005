"""Lets code that runs on fake tensors take the memory that it takes on a CUDA card.

Attention keeps its inputs, its output and one number a row, whichever of the fused kernels runs;
TRL's log-probabilities are folded by a kernel in place; 8-bit layers multiply integers. Operators
whose result depends on numbers give their largest one: a mask keeps every token, a number that is
asked for is 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

aten = torch.ops.aten


@contextmanager
def replaced(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Give objects other attributes while the context is open; each is an object, name, value."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def cuda_paths() -> AbstractContextManager[None]:
    """Take the paths of CUDA while the context is open."""
    import bitsandbytes
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    if not hasattr(chunked_logprob, "triton"):  # not installed, and asked for one division
        chunked_logprob.triton = SimpleNamespace(cdiv=lambda a, b: -(-a // b))
    return replaced(
        [
            (torch.nn.functional, "scaled_dot_product_attention", attention),
            (bitsandbytes, "matmul", matmul_8bit),
            (utils, "_use_triton", lambda device: True),
            (chunked_logprob, "_use_triton", lambda device: True),
            (chunked_logprob, "_forward_kernel", _InPlace()),
            (chunked_logprob, "_backward_kernel", _InPlace()),
            (chunked_logprob, "_addmm_fp32", lambda *given: None),
        ]
    )


class _InPlace:
    """A kernel that writes into what it is given."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


def attention(  # noqa: PLR0917  the signature of torch
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention of a fused kernel; see torch.nn.functional.scaled_dot_product_attention."""
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # The kernels add a mask, so it becomes numbers, for each layer anew.
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
    out: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, attn_mask, enable_gqa
    )
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, grouped: bool
    ) -> Tensor:
        shape = (*query.shape[:-1], value.shape[-1])
        # Laid out as the kernels do it: transposing it back is then no copy.
        out = query.new_empty((shape[0], shape[2], shape[1], shape[3])).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, sums)
        ctx.grouped = grouped
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, _, _, sums = ctx.saved_tensors
        products = torch.empty_like(sums)
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        if ctx.grouped:  # those of all heads, before they are added up
            wide = [torch.empty_like(query), torch.empty_like(query)]
            del wide
        del products
        return (*gradients, None, None)


def matmul_8bit(
    inputs: Tensor, weight: Tensor, *, bias: Tensor | None = None, state: Any = None, **_: Any
) -> Tensor:
    """The product of a layer with 8-bit weights; see bitsandbytes.matmul."""
    out: Tensor = _Product8bit.apply(  # type: ignore[no-untyped-call]
        inputs, state.CB, bias
    )
    return out


class _Product8bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Any) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        shape = (*inputs.shape[:-1], weight.shape[0])
        half = inputs.to(torch.float16)
        rounded = torch.empty(inputs.shape, dtype=torch.int8, device=inputs.device)
        summed = torch.empty(shape, dtype=torch.int32, device=inputs.device)
        out = torch.empty(shape, dtype=inputs.dtype, device=inputs.device)
        del half, rounded, summed
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs, weight = ctx.saved_tensors
        unpacked = weight.to(inputs.dtype)
        of_inputs = torch.empty_like(inputs)
        del unpacked
        return of_inputs, None, None


def run_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], measure: Any) -> Any:
    """Run an operator, or say what it gives at most.

    Args:
        func: The operator.
        args: What it was called with.
        kwargs: The same by name.
        measure: Counts what is made on the way.

    Returns:
        The result.
    """
    packet = func.overloadpacket
    if packet is aten._local_scalar_dense and isinstance(args[0], FakeTensor):
        dtype = args[0].dtype
        return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
    if packet in (aten.equal, aten.is_nonzero, aten.allclose) and isinstance(args[0], FakeTensor):
        return True
    if packet is aten.nonzero and isinstance(args[0], FakeTensor):
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
    if packet is aten.masked_select and isinstance(args[0], FakeTensor):
        return args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape).numel())
    if packet is aten.masked_scatter_backward and isinstance(args[0], FakeTensor):
        return args[0].new_empty(list(args[2]))
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        if any(_is_fake_mask(index) for index in args[1]):
            args = (args[0], _spelled_out(args[1], measure), *args[2:])
    elif func.namespace == "bitsandbytes":
        return _of_bitsandbytes(func, args, kwargs, measure)
    return func(*args, **kwargs)


def _is_fake_mask(index: Any) -> bool:
    return isinstance(index, FakeTensor) and index.dtype == torch.bool


def _spelled_out(indices: Any, measure: Any) -> list[Any]:
    """Indices with each mask as the positions of all it has, as the operator does inside."""
    out: list[Any] = []
    for index in indices:
        if _is_fake_mask(index):
            number = min(index.numel(), measure.most_kept or index.numel())
            made = [index.new_empty(number, dtype=torch.int64) for _ in range(index.dim())]
            for tensor in made:
                measure.count(tensor)
            out += made
        else:
            out.append(index)
    return out


def _of_bitsandbytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], measure: Any) -> Any:
    name = func.overloadpacket._qualified_op_name.partition("::")[2]
    inputs = args[0]
    if name == "gemm_4bit":
        # On CUDA, but for a few rows, the weights are unpacked first, and their scales before.
        unpacked = inputs.new_empty(args[2])
        measure.count(unpacked)
        scales = kwargs.get("absmax_8bit")
        if scales is not None:
            measure.count(scales.new_empty(scales.shape, dtype=torch.float32))
    is_fake = isinstance(inputs, FakeTensor)
    if name == "int8_vectorwise_quant" and is_fake:  # without a column of outliers
        rows = inputs.numel() // inputs.shape[-1]
        rounded = torch.empty_like(inputs, dtype=torch.int8)
        return rounded, inputs.new_empty(rows, dtype=torch.float32), inputs.new_empty(0).long()
    if name == "int8_mixed_scaled_mm" and is_fake:
        return inputs.new_empty((*args[1].shape[:-1], args[2].shape[0])), None
    return func(*args, **kwargs)
