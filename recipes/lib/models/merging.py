"""Merging an adapter into its base, and seeing that the merged model says what the two did.

Where input and output share their weights, an adapter on one of the two changes both by a merge, so
the two are parted first. What else goes wrong shows in the logits of a few tokens.

Shapes: T tokens, V outputs.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recipes.lib.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

NUM_TOKENS = 32
STRIDE = 7919  # a prime: the tokens come from all over the vocabulary
# What rounding may do to logits, as a share of their spread; merged weights are rounded once more.
ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def merge_adapter(adapted: PeftModel, path: str) -> PreTrainedModel:
    """Merge an adapter into its base, as the full model of a name.

    Args:
        adapted: The adapter on its base; it is changed.
        path: The adapter's folder.

    Returns:
        The merged model, trainable and in evaluation mode.

    Raises:
        UserError: An adapter of this kind has nothing to merge, or the merged model says something
            else than the two did.
    """
    refuse_prompt(adapted.active_peft_config, path)
    before_TV = _probe(adapted.eval())
    _part_shared_embeddings(adapted)
    model: Any = adapted.merge_and_unload()
    model.__dict__.pop("base_quantization", None)  # it is a base of its own now
    model.requires_grad_(True)  # peft froze the base, and a merged model is a full one
    model.name_or_path = path  # so that an adapter trained on it names this folder as its base
    _refuse_drift(before_TV, _probe(model), model.dtype, path)
    return model


def save_merged(adapted: PeftModel, folder: Path, max_shard_size: str) -> None:
    """Merge an adapter into its base and save that, with one shard of it in memory at a time.

    A layer is merged when its shard is written: in 32 bits, and rounded once. What was rounded to 4
    or 8 bits is spread out again there.

    Args:
        adapted: The adapter on its base, as training saw the two; it is changed.
        folder: Where the model goes.
        max_shard_size: Of a file of weights, such as "1GB".
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    _part_shared_embeddings(adapted)
    base: Any = adapted.get_base_model()
    dtype, waiting, inside = base.dtype, _Unmerged(base), "-"
    for name, layer in list(base.named_modules()):
        if name.startswith(f"{inside}."):
            continue
        if hasattr(layer, "unload_and_optionally_merge_module"):  # a whole layer that was trained
            inside = name
        elif isinstance(layer, BaseTunerLayer) or _is_rounded(layer):
            inside, waiting.layers[name] = name, layer
            base.set_submodule(name, _without_weights(layer, dtype))
    model: Any = adapted.merge_and_unload()
    if getattr(model, "is_quantized", False):
        model.hf_quantizer.remove_quantization_config(model)
    # transformers fetches what is not there yet from a hook, and writes it shard by shard.
    model.hf_device_map, model._hf_hook = {"": "disk"}, SimpleNamespace(weights_map=waiting)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded")
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    del model._hf_hook  # a circle, which would keep the base


@dataclass
class _Unmerged:
    """Layers by their names; asked for a weight of theirs, it is that of the merged layer."""

    model: Any
    layers: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        layer, _, parameter = name.rpartition(".")
        weight = _merged_layer(self.layers[layer]).get_parameter(parameter)
        return weight.detach().to(self.model.get_parameter(name).dtype)


@torch.no_grad()
def _merged_layer(layer: Any) -> nn.Module:
    """A plain layer in 32 bits that says what an adapted or rounded one does."""
    inner = _inner(layer)
    if not _is_rounded(inner):
        layer = copy.deepcopy(layer).float()
        layer.merge()
        return _inner(layer)
    plain = dequantized(inner)
    for adapter in getattr(layer, "active_adapters", ()):  # as peft's own, which rounds again
        if variant := layer.lora_variant.get(adapter):
            plain.weight.data = variant.merge_safe(layer, adapter, plain.weight.data)
        else:
            plain.weight.data += layer.get_delta_weight(adapter)
    return plain


def _inner(layer: Any) -> Any:
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def _is_rounded(layer: Any) -> bool:
    return type(layer).__module__.startswith("bitsandbytes.")


def _without_weights(layer: Any, dtype: torch.dtype) -> nn.Module:
    inner = _inner(layer)
    if not _is_rounded(inner):
        return copy.deepcopy(inner).to("meta")
    sizes, has_bias = (inner.in_features, inner.out_features), inner.bias is not None
    return nn.Linear(*sizes, bias=has_bias, dtype=dtype, device="meta")


def dequantized(layer: Any) -> Any:
    """A layer of 4 or 8 bits as one with the same weights in 32; another one as it is."""
    from peft.utils.integrations import dequantize_module_weight

    if not _is_rounded(layer):
        return layer
    if (state := getattr(layer, "state", None)) is None:
        weight = dequantize_module_weight(layer).detach().float()
    else:  # of 8 bits; where the scales are depends on whether it was asked before
        scales = layer.weight.SCB if state.SCB is None else state.SCB
        weight = layer.weight.detach().float() * scales.float()[:, None] / 127
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float())
    return plain


def refuse_prompt(config: Any, path: str) -> None:
    """Refuse an adapter that is a prompt, of which a base alone knows nothing."""
    if config.is_prompt_learning:
        raise UserError(
            f"model_name_or_path={path}: an adapter of the kind {config.peft_type.value} is a "
            "prompt and cannot be merged into its base; train one with LoRA."
        )


def _part_shared_embeddings(adapted: PeftModel) -> None:
    base: Any = adapted.get_base_model()
    inner, outer = base.get_input_embeddings(), base.get_output_embeddings()
    if not (hasattr(inner, "base_layer") or hasattr(outer, "base_layer")):
        return
    inner, outer = (getattr(layer, "base_layer", layer) for layer in (inner, outer))
    if outer is not None and inner.weight is outer.weight:
        outer.weight = nn.Parameter(inner.weight.detach().clone())
        for one in (base.config, base.config.get_text_config()):
            one.tie_word_embeddings = False


@torch.no_grad()
def _probe(model: Any) -> Tensor | None:
    """Logits of a few tokens, or the states below a score; None where no weights are at hand."""
    weight = model.get_input_embeddings().weight
    if weight.is_meta or not weight.numel():
        return None
    ids_T = torch.arange(NUM_TOKENS, device=weight.device) * STRIDE % weight.shape[0]
    said = model(input_ids=ids_T[None], output_hidden_states=True)
    # One score says little of a classifier; what its head reads does.
    found: Tensor = said.hidden_states[-1] if said.logits.ndim == 2 else said.logits
    return found[0].float()


def _refuse_drift(
    before: Tensor | None, after: Tensor | None, dtype: torch.dtype, path: str
) -> None:
    if before is None or after is None:
        return
    drift, spread = (after - before).square().mean().sqrt(), before.square().mean().sqrt()
    if not drift <= ROUNDING.get(dtype, 1e-1) * spread:
        raise UserError(
            f"model_name_or_path={path}: merged into its base, the adapter says something else "
            f"(its logits differ by {drift / spread:.1%} of their size); use it unmerged, with "
            "use_peft."
        )
