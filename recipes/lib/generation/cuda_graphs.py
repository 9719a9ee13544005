"""CUDA graphs of a model's decode step, and when they are void."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from recipes.lib.errors import UserError, first_line, is_memory

RUNS_BEFORE = 2  # in which libraries choose kernels and take workspaces


class Graphs:
    """Captured steps of a model, by their sizes.

    A graph reads weights where they were when it was captured. An optimizer changes them in place,
    and so a graph sees new weights; where one has moved, all graphs are void.

    Args:
        model: The model that the steps run.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.captured: dict[tuple[Any, ...], Any] = {}
        self.addresses: list[Any] = []

    def forget(self) -> None:
        """Drop all graphs."""
        self.captured.clear()

    def forget_if_moved(self) -> None:
        """Drop all graphs where a weight has moved or other adapters act than before."""
        now = addresses(self.model)
        if now != self.addresses:
            self.forget()
        self.addresses = now

    def replay(
        self, sizes: tuple[Any, ...], step: Callable[[], None], moving: Sequence[Tensor]
    ) -> None:
        """Run a step, captured when it is first met.

        Args:
            sizes: What tells this step from others.
            step: Reads and writes tensors that stay where they are.
            moving: The tensors that it moves on, all but the cache.

        Raises:
            UserError: The step cannot be captured.
        """
        device = self.model.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (*sizes, dtype)
        with torch.cuda.device(self.model.device):
            if key not in self.captured:
                self.captured[key] = self._captured(step, moving, dtype)
            self.captured[key].replay()

    def _captured(
        self, step: Callable[[], None], moving: Sequence[Tensor], dtype: torch.dtype | None
    ) -> Any:
        try:
            return self._capture(step, moving, dtype)
        except RuntimeError as error:
            first = error.__context__ or error  # the end of a capture that broke raises, too
            if is_memory(first) or is_memory(error):
                raise
            raise UserError(
                f"sampler=graph: a step of this model cannot be captured ({first_line(first)}); "
                "use sampler=transformers."
            ) from error

    def _capture(
        self, step: Callable[[], None], moving: Sequence[Tensor], dtype: torch.dtype | None
    ) -> Any:
        before = [tensor.clone() for tensor in moving]
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        pool = next(iter(self.captured.values())).pool() if self.captured else None
        side.wait_stream(torch.cuda.current_stream())
        # Without its cache: what autocast made of a weight is gone when autocast ends.
        with torch.autocast("cuda", dtype, dtype is not None, cache_enabled=False):
            with torch.cuda.stream(side):
                for _ in range(RUNS_BEFORE):
                    step()
                    for tensor, value in zip(moving, before, strict=True):
                        tensor.copy_(value)
            torch.cuda.current_stream().wait_stream(side)
            # Other threads (NCCL's, a loader's) may call CUDA meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                step()
        return graph


def addresses(model: PreTrainedModel) -> list[Any]:
    """What a captured step has fixed of a model: where its weights are, and which adapters act."""
    fixed: list[Any] = [model.config._attn_implementation]
    for tensor in (*model.parameters(), *model.buffers()):
        fixed.append(tensor.data_ptr())
        fixed += _of_quantization(getattr(tensor, "quant_state", None))
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            scaling = tuple(getattr(module, "scaling", {}).items())
            adapters = tuple(module.active_adapters)
            fixed.append((adapters, module.disable_adapters, module.merged, scaling))
    return fixed


def _of_quantization(state: Any) -> list[int]:
    """Where the scales of a 4-bit weight are, and those of its scales."""
    if state is None:
        return []
    parts = (getattr(state, name, None) for name in ("absmax", "code", "offset"))
    found = [part.data_ptr() for part in parts if isinstance(part, Tensor)]
    return found + _of_quantization(getattr(state, "state2", None))
