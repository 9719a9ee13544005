"""Counts the bytes of live tensors while code runs, on real tensors or on shapes alone.

It sees every operator below autograd, as the allocator of a card would: what a pass makes, what
autograd keeps of it, and what is given back when.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # the allocator of CUDA hands out multiples of so many bytes
KEPT, LOGITS, PASSING, GRADIENTS = "activations", "logits", "workspace", "gradients"


class Meter(TorchDispatchMode):
    """Counts tensors that are made inside it; what was there before is not counted.

    Args:
        vocab_sizes: Widths by which logits are known.
    """

    def __init__(self, vocab_sizes: Iterable[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocab_sizes = frozenset(vocab_sizes)
        self.sizes: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.refs: dict[int, Any] = {}
        self.now: dict[str, int] = {}
        self.total = 0
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self.most_kept: int | None = None  # tokens that a mask keeps at most

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and count what it made."""
        from recipes.lib.plan.worst_case import run

        out = run(func, args, kwargs or {}, self)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Leave tensors out of the count, such as weights that are counted elsewhere."""
        for tensor in tensors:
            self.sizes[_key(tensor)] = 0

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        is_wide = tensor.dim() > 1 and tensor.shape[-1] in self.vocab_sizes
        self.sizes[key], self.kinds[key] = size, LOGITS if is_wide else PASSING
        self.refs[key] = weakref.ref(storage, lambda _: self._free(key))
        self._add(self.kinds[key], size)
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.now)

    def label(self, tensor: Tensor, kind: str) -> None:
        """Move a tensor to another kind; logits stay logits."""
        key = _key(tensor)
        size = self.sizes.get(key, 0)
        if size and self.kinds[key] not in (LOGITS, kind):
            self._add(self.kinds[key], -size)
            self._add(kind, size)
            self.kinds[key] = kind

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Label what autograd keeps for the backward pass."""

        def pack(tensor: Tensor) -> Tensor:
            self.label(tensor, KEPT)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    @contextmanager
    def gradients_of(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Label what becomes the gradient of a parameter."""

        def label(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.label(parameter.grad, GRADIENTS)

        handles = [p.register_post_accumulate_grad_hook(label) for p in parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _free(self, key: int) -> None:
        self._add(self.kinds.pop(key), -self.sizes.pop(key))
        self.refs.pop(key)

    def _add(self, kind: str, size: int) -> None:
        self.now[kind] = self.now.get(kind, 0) + size
        self.total += size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
