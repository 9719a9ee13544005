"""The bytes of a pass: all live tensors while code runs, and of its fullest moment by kind.

Every operator below autograd is seen, as the allocator of a card would: what a pass makes, what
autograd keeps of it, and what is given back when; on real tensors or on shapes alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recipes.lib.plan import meta_models
from recipes.lib.plan.breakdown import ACTIVATIONS, GRADIENTS, LOGITS, WORKSPACE
from recipes.lib.plan.fake_cuda import cuda_paths, replaced, run_operator
from recipes.lib.plan.run_models import RunModels

PROBES = 2, 3  # repetitions of the pattern of layers at which a deep model is weighed
TILE = 32768  # columns of logits that TRL makes at a time
Pass = Callable[["MemoryMeasure"], None]


BLOCK = 512  # the allocator of CUDA hands out multiples of so many bytes


class MemoryMeasure(TorchDispatchMode):
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
        out = run_operator(func, args, kwargs or {}, self)
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
        self.sizes[key], self.kinds[key] = size, LOGITS if is_wide else WORKSPACE
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
            self.label(tensor, ACTIVATIONS)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def gradients_of(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Label what becomes the gradient of a parameter."""

        def label(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.label(parameter.grad, GRADIENTS)

        return on_gradients(parameters, label)

    def _free(self, key: int) -> None:
        self._add(self.kinds.pop(key), -self.sizes.pop(key))
        self.refs.pop(key)

    def _add(self, kind: str, size: int) -> None:
        self.now[kind] = self.now.get(kind, 0) + size
        self.total += size


@contextmanager
def on_gradients(
    parameters: Iterable[nn.Parameter], act: Callable[[Tensor], None]
) -> Iterator[None]:
    """Do something with each parameter as soon as its gradient is there."""
    handles = [p.register_post_accumulate_grad_hook(act) for p in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class FakeModels:
    """The models of a run as fake tensors, and passes of them weighed.

    Args:
        models: The models, on the meta device; they are changed.
        autocast: Number format of mixed precision, or None.
        on_card: Whether passes take the paths of CUDA; else those of the CPU.
        is_deep: Whether the layers of deep models are weighed one by one.
    """

    def __init__(
        self, models: RunModels, autocast: Any, *, on_card: bool = True, is_deep: bool = False
    ) -> None:
        from torch._subclasses import FakeTensorMode

        self.models, self.dtype, self.on_card, self.is_deep = models, autocast, on_card, is_deep
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        meta_models.to_fake(models.modules, self.mode)
        config = models.policy.config.get_text_config()
        self.vocab_sizes = {config.vocab_size, TILE}

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, where the run has it."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast("cpu", dtype=self.dtype)

    def batch(self, rows: int, width: int) -> dict[str, Any]:
        """Ids and mask of a batch; a single row has no padding and so needs no mask."""
        ids = torch.zeros(rows, width, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if rows > 1 else None}

    def peak(self, run: Pass, *, is_deep: bool = False) -> dict[str, int]:
        """Bytes of tensors at the fullest moment of a pass.

        Every layer of a stack takes the same, so two shallow stacks tell of the deep one.

        Args:
            run: The pass.
            is_deep: Whether every layer has to be run.

        Returns:
            Bytes by kind; weights and the optimizer are not counted.
        """
        depth, period = _depth(self.models.policy)
        low, high = (probe * period for probe in PROBES)
        if self.is_deep or is_deep or depth <= high:
            return self._peak(run)
        with _cut(self.models.modules, low):
            few = self._peak(run)
        with _cut(self.models.modules, high):
            more = self._peak(run)
        steps = (depth - high) / (high - low)
        return {
            kind: round(more.get(kind, 0) + steps * (more.get(kind, 0) - few.get(kind, 0)))
            for kind in few | more
        }

    def _peak(self, run: Pass) -> dict[str, int]:
        with ExitStack() as stack:
            if self.on_card:
                stack.enter_context(cuda_paths())
            stack.enter_context(self.mode)
            measure = MemoryMeasure(self.vocab_sizes)
            for module in self.models.modules:
                measure.forget(meta_models.tensors_of(module))
            stack.enter_context(measure)
            run(measure)
            return dict(measure.at_peak)


def _depth(policy: Any) -> tuple[int, int]:
    """Layers of a model, and after how many their kinds repeat."""
    config = policy.config.get_text_config()
    depth = int(config.num_hidden_layers)
    kinds = list(getattr(config, "layer_types", None) or [])
    if len(kinds) != depth:
        is_mixed = bool(getattr(config, "mlp_only_layers", None))
        return depth, depth if is_mixed else 1
    periods = range(1, depth + 1)
    return depth, next(p for p in periods if all(kinds[i] == kinds[i % p] for i in range(depth)))


def _cut(modules: list[nn.Module], depth: int) -> AbstractContextManager[None]:
    """Leave only the first layers of every model."""
    changes: list[tuple[Any, str, Any]] = []
    for module in modules:
        for part in module.modules():
            config: Any = getattr(part, "config", None)
            text = config.get_text_config() if hasattr(config, "get_text_config") else None
            if text is None:
                continue
            number = text.num_hidden_layers
            changes.append((text, "num_hidden_layers", min(depth, number)))
            for name, child in part.named_children():
                if isinstance(child, nn.ModuleList) and len(child) == number:
                    changes.append((part, name, child[:depth]))
    return replaced(changes)
