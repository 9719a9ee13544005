"""Linear layers on processors on which PyTorch's own take twice as long as they need.

PyTorch hands fp32 products to MKL, which makes no use of AVX-512 on processors of AMD; oneDNN,
which PyTorch carries too, does (docs/benchmarks/cpu.md). Numbers differ by rounding alone.

Shapes: B rows, O outputs.
"""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Multiplications below which the call costs more than it saves.
LEAST_WORK = 1 << 22
PLAIN_TENSORS = (Tensor, nn.Parameter)


class _Product(torch.autograd.Function):
    """x W^T + b and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_BO = grad.reshape(-1, grad.shape[-1])
        of_x = _linear(grad, weight.t(), None) if wants_x else None
        of_weight = None
        if wants_weight:
            of_weight = _linear(grad_BO.t(), x.reshape(-1, x.shape[-1]).t(), None)
        return of_x, of_weight, grad_BO.sum(0) if wants_bias else None


class CpuLinear(nn.Linear):
    """A linear layer whose larger fp32 products are oneDNN's."""

    def forward(self, input: Tensor) -> Tensor:
        """Product with the weight, and the bias."""
        if not _is_worth_it(input, self.weight):
            return super().forward(input)
        if torch.is_grad_enabled():
            return _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return _linear(input, self.weight, self.bias)


def use_fast_products(model: nn.Module) -> None:
    """Let the linear layers of a model use the faster products, where this processor gains by them.

    Only the layers' class changes: weights, names and what is saved stay as they are.

    Args:
        model: Any module; layers of other kinds than plain linear ones stay.
    """
    if has_slow_mkl():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = CpuLinear


@functools.cache
def has_slow_mkl() -> bool:
    """Whether PyTorch multiplies with MKL on a processor of AMD with AVX-512, and has oneDNN."""
    # AMD's processors of AVX2 alone are 14 to 47 % slower with oneDNN.
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    has_both = has_both and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_both and _vendor() == "AMD" and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _vendor() -> str:
    # By name and not by a measurement, which could fall out otherwise when a run is resumed.
    about = Path("/proc/cpuinfo")
    text = about.read_text(encoding="utf-8") if about.exists() else platform.processor()
    return "AMD" if "AuthenticAMD" in text else ""


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    # Shards and other kinds of tensors have products of their own.
    if type(x) not in PLAIN_TENSORS or type(weight) not in PLAIN_TENSORS:
        return False
    is_fp32 = x.dtype == weight.dtype == torch.float32
    return is_fp32 and x.numel() * weight.shape[0] >= LEAST_WORK


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
