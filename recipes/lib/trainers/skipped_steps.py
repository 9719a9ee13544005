"""Steps without finite gradients: skipped, counted, their batches kept to be looked at."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from recipes.lib.errors import UserError

MOST_IN_A_ROW = 3  # such steps
MOST_KEPT = 20  # batches: of a run that skips again and again the first ones tell enough


def dump_batches(batches: Sequence[dict[str, Any]], folder: Path, step: int, process: int) -> Path:
    """Write the tensors of a step's micro-batches.

    Args:
        batches: The micro-batches of this process.
        folder: Where to.
        step: Number of the step.
        process: Number of the process.

    Returns:
        The file: safetensors, with names such as `0.input_ids`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step}-process-{process}.safetensors"
    if len(list(folder.iterdir())) >= MOST_KEPT:
        return path
    tensors = {
        f"{i}.{name}": value.detach().cpu().contiguous().clone()
        for i, batch in enumerate(batches)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    save_file(tensors, path)
    return path


def has_finite_weights(model: torch.nn.Module) -> bool:
    """Whether no weight that is trained is NaN or infinite, of shards those of this process."""
    trained: Any = (weight for weight in model.parameters() if weight.requires_grad)
    shards = (getattr(weight, "ds_tensor", weight) for weight in trained)  # of ZeRO-3
    here = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in shards)
    return all(bool(weight.isfinite().all()) for weight in here)


class FiniteSteps:
    """Mixin for a Trainer that makes no step with gradients that are not finite."""

    args: Any
    state: Any
    accelerator: Any
    is_deepspeed_enabled: bool
    _batches: Any = ()  # micro-batches of the step
    _skipped = 0  # steps in all
    _in_a_row = 0
    _moves = False  # whether an optimizer step is under way, or was broken off

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        # With fp16 a scaler looks after it. DeepSpeed has left the step out by itself and says that
        # the norm is infinite. Gradients are summed, so all processes see the same.
        by_scaler = self.accelerator.scaler is not None
        by_scaler = by_scaler or (self.is_deepspeed_enabled and self.args.fp16)
        if norm is None or by_scaler or math.isfinite(float(norm)):
            self._in_a_row, self._moves = 0, True  # the optimizer comes next
            return norm
        self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
        folder, step = Path(self.args.output_dir) / "faults", self.state.global_step + 1
        path = dump_batches(self._faulty_batches(), folder, step, self.args.process_index)
        told = f"step {step}: gradients are not finite, so it is skipped"
        if self.args.process_index == 0:
            print(f"{told}; its batch is in {path}.", file=sys.stderr)
        if self._in_a_row >= MOST_IN_A_ROW:
            raise UserError(
                f"the gradients of {self._in_a_row} steps in a row were not finite, the last batch "
                f"is in {path}; start anew with a lower learning_rate, or without bf16 and fp16."
            )
        if not self.is_deepspeed_enabled:
            model.zero_grad(set_to_none=True)  # an optimizer leaves alone what has no gradient
        self._moves = True
        return norm

    def _faulty_batches(self) -> Any:
        return self._batches
