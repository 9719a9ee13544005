"""Merging an adapter into its base, and seeing that the merged model says what the two did.

Where input and output share their weights, an adapter on one of the two changes both by a merge, so
the two are parted first. What else goes wrong shows in the logits of a few tokens.

Shapes: T tokens, V outputs.
"""

from __future__ import annotations

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
