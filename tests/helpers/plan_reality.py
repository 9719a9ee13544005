"""What a recipe really takes: its training steps on the CPU, with every tensor counted."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

from recipes.lib.plan.measure import MemoryMeasure
from recipes.lib.plan.meta_models import num_bytes, tensors_of
from recipes.lib.recipe.main import launch
from tests.helpers.tiny_runs import flags

ALIKE = {"hidden_size": 64, "intermediate_size": 128}


@dataclass
class Measured:
    """What the last training step of a run took, in bytes.

    Args:
        pass_bytes: At the fullest moment of forward and backward pass, without weights.
        kinds: The same by kind.
        weights: All tensors of the trained module.
        optimizer: States of the optimizer.
        gradients: Gradients after the pass.
        width: Columns of the batch.
    """

    pass_bytes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    width: int = 0


def measured_run(
    monkeypatch: pytest.MonkeyPatch, recipe: str, values: dict[str, Any]
) -> tuple[Measured, int]:
    """Run a recipe in the current folder and measure its last training step; also its exit code."""
    found = Measured()
    step = transformers.Trainer.training_step

    def measured_step(self: Any, model: Any, *more: Any) -> Any:
        meter = MemoryMeasure()
        prepared: dict[str, Any] = {}

        def begin(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            prepared.update(inputs)
            held = [getattr(self, name, None) for name in ("ref_model", "reference")]
            for module in (model, *(other for other in held if other is not None)):
                meter.forget(tensors_of(module))
            meter.forget([p.grad for p in model.parameters() if p.grad is not None])
            meter.forget([v for v in inputs.values() if hasattr(v, "untyped_storage")])
            meter.__enter__()  # type: ignore[no-untyped-call]  # and out of it after the backward pass
            return compute_loss(model, inputs, *more, **named)

        compute_loss, self.compute_loss = self.compute_loss, begin
        try:
            loss = step(self, model, *more)
        finally:
            meter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            del self.compute_loss
        found.pass_bytes, found.kinds = meter.peak, meter.at_peak
        note(self, model, prepared, found)
        return loss

    monkeypatch.setattr(transformers.Trainer, "training_step", measured_step)
    code = launch(recipe, flags(values))
    return found, code


def note(trainer: Any, model: nn.Module, inputs: dict[str, Any], found: Measured) -> None:
    """Note what is held besides the pass."""
    names = ("input_ids", "chosen_input_ids", "prompt_ids")
    found.width = next(inputs[name].shape[1] for name in names if name in inputs)
    if "prompt_ids" in inputs:
        found.width += inputs["completion_ids"].shape[1]
    found.weights = num_bytes(tensors_of(model))
    found.gradients = num_bytes([p.grad for p in model.parameters() if p.grad is not None])
    optimizer = trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)
    states = [v for state in optimizer.state.values() for v in state.values()]
    tensors = {s.untyped_storage()._cdata: s for s in states if hasattr(s, "untyped_storage")}
    found.optimizer = num_bytes(list(tensors.values()))


def rows_of(recipe: str) -> list[dict[str, Any]]:
    """Rows of unequal lengths, so that batches are padded."""
    words = "the cat sat on the mat and the dog sat".split()
    texts = [" ".join(words[n % 3 : 3 + n]) for n in range(8)]
    if recipe == "sft":
        return [{"text": text} for text in texts]
    if recipe in ("dpo", "reward"):
        return [{"prompt": text, "chosen": f" {text}", "rejected": " the dog"} for text in texts]
    if recipe == "kto":
        return [
            {"prompt": "the cat", "completion": f" {text}", "label": n % 2 == 0}
            for n, text in enumerate(texts)
        ]
    return [{"prompt": text} for text in texts]


def write_reward(folder: Path) -> None:
    """A reward function that any completion can be given to."""
    (folder / "rewards.py").write_text(
        "def odd(completion_ids, **_):\n    return [ids[0] / 9 for ids in completion_ids]\n"
    )
