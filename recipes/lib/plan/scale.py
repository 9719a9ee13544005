"""Weighs a pass of a run's models: the tensors of its fullest moment, by kind, in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from recipes.lib.plan import meta_models
from recipes.lib.plan.fake_cuda import as_on_card
from recipes.lib.plan.measure import Meter
from recipes.lib.plan.run_models import Cast

PROBES = 2, 3  # repetitions of the pattern of layers at which a deep model is weighed
TILE = 32768  # columns of logits that TRL makes at a time

Run = Callable[[Meter], None]


class Scale:
    """The models of a run as fake tensors, and passes of them weighed.

    Args:
        cast: The models, on the meta device; they are changed.
        autocast: Number format of mixed precision, or None.
        on_card: Whether passes take the paths of CUDA; else those of the CPU.
        is_deep: Whether the layers of deep models are weighed one by one.
    """

    def __init__(
        self, cast: Cast, autocast: Any, *, on_card: bool = True, is_deep: bool = False
    ) -> None:
        from torch._subclasses import FakeTensorMode

        self.cast, self.dtype, self.on_card, self.is_deep = cast, autocast, on_card, is_deep
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        meta_models.to_fake(cast.modules, self.mode)
        config = cast.policy.config.get_text_config()
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

    def weigh(self, run: Run, *, is_deep: bool = False) -> dict[str, int]:
        """Bytes of tensors at the fullest moment of a pass.

        Every layer of a stack takes the same, so two shallow stacks tell of the deep one.

        Args:
            run: The pass.
            is_deep: Whether every layer has to be run.

        Returns:
            Bytes by kind; weights and the optimizer are not counted.
        """
        depth, period = _depth(self.cast.policy)
        low, high = (probe * period for probe in PROBES)
        if self.is_deep or is_deep or depth <= high:
            return self._weigh(run)
        with _cut(self.cast.modules, low):
            few = self._weigh(run)
        with _cut(self.cast.modules, high):
            more = self._weigh(run)
        kinds = {**few, **more}
        steps = (depth - high) / (high - low)
        return {
            kind: round(more.get(kind, 0) + steps * (more.get(kind, 0) - few.get(kind, 0)))
            for kind in kinds
        }

    def _weigh(self, run: Run) -> dict[str, int]:
        with ExitStack() as stack:
            if self.on_card:
                stack.enter_context(as_on_card())
            stack.enter_context(self.mode)
            meter = Meter(self.vocab_sizes)
            for module in self.cast.modules:
                meter.forget(meta_models.tensors_of(module))
            stack.enter_context(meter)
            run(meter)
            return dict(meter.at_peak)


def _depth(policy: Any) -> tuple[int, int]:
    """Layers of a model, and after how many their kinds repeat."""
    config = policy.config.get_text_config()
    depth = int(config.num_hidden_layers)
    kinds = list(getattr(config, "layer_types", None) or [])
    if len(kinds) != depth:
        is_mixed = bool(getattr(config, "mlp_only_layers", None))
        return depth, depth if is_mixed else 1
    for period in range(1, depth + 1):
        if all(kinds[i] == kinds[i % period] for i in range(depth)):
            return depth, period
    return depth, depth


@contextmanager
def _cut(modules: list[nn.Module], depth: int) -> Iterator[None]:
    """Leave only the first layers of every model."""
    before: list[tuple[Any, str, Any]] = []
    configs: dict[int, tuple[Any, int]] = {}
    for module in modules:
        for part in module.modules():
            config: Any = getattr(part, "config", None)
            text = config.get_text_config() if hasattr(config, "get_text_config") else None
            if text is None:
                continue
            configs[id(text)] = (text, configs.get(id(text), (None, text.num_hidden_layers))[1])
            for name, child in part.named_children():
                if isinstance(child, nn.ModuleList) and len(child) == text.num_hidden_layers:
                    before.append((part, name, child))
    try:
        for part, name, child in before:
            setattr(part, name, child[: min(depth, len(child))])
        for text, number in configs.values():
            text.num_hidden_layers = min(depth, number)
        yield
    finally:
        for part, name, child in before:
            setattr(part, name, child)
        for text, number in configs.values():
            text.num_hidden_layers = number
