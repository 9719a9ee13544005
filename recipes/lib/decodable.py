"""Which models the own decode loop can run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

KINDS = ("full_attention", "sliding_attention")
# Their frequencies follow the longest sequence in the batch, which changes when rows end.
MOVING_ROPE = ("dynamic", "longrope")


def obstacle(model: PreTrainedModel, is_static: bool = False) -> str | None:
    """Why the loop cannot run a model as generate does.

    Args:
        model: Causal language model.
        is_static: Whether steps must have the same shapes, as a capture needs.

    Returns:
        What the model does, for a sentence that begins with "the model"; None for nothing.
    """
    kinds, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    others = sorted(set(kinds) - set(KINDS))
    if others:
        return f"has layers of {' and '.join(others)}"
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return "takes no cache of keys and values"
    own = type(model).prepare_inputs_for_generation
    if own is not GenerationMixin.prepare_inputs_for_generation:
        return "prepares its inputs for generation in its own way"
    moving = sorted(set(_rope_types(model.config.to_dict())) & set(MOVING_ROPE))
    if moving:
        return f"has positions of the kind {' and '.join(moving)}"
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return "lies on several devices"
    if is_static and not getattr(model, "_can_compile_fullgraph", False):
        return "has steps that depend on what they read"
    return None


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether a model is told positions, and does not count them by itself."""
    return "position_ids" in inspect.signature(model.forward).parameters


def is_faster(model: PreTrainedModel) -> bool:
    """Whether the loop is known to be faster than generate (docs/benchmarks/cpu.md).

    Args:
        model: Causal language model.

    Returns:
        Whether it can run the model, on a CPU; on a GPU this is not yet measured.
    """
    return model.device.type == "cpu" and obstacle(model) is None


def _rope_types(value: Any) -> Iterator[str]:
    """All rope types in a configuration, which may have one for each kind of layer."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("rope_type", "type") and isinstance(inner, str):
                yield inner
            yield from _rope_types(inner)
