"""Models on paper: modules of the real classes whose tensors have shapes and no numbers.

They are built on the meta device with the code that builds the real ones (transformers, peft,
bitsandbytes), so that counts are exact. For a pass their tensors become fake ones of a device.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from recipes.lib.models.classifiers import with_outputs
from recipes.lib.models.reward_heads import ONE
from recipes.lib.models.vision import language_class

BLOCK_4BIT = 64  # weights that share a scale, in bitsandbytes
BLOCK_NESTED = 256  # scales that share a scale under double quantization
TABLE_NESTED = 256  # entries of the table that scales are rounded to
TABLE_4BIT = 16


def causal_model(config: Any, model_args: Any, trust_remote_code: bool = False) -> Any:
    """A causal language model on paper, quantized where the keys say so.

    Args:
        config: Its configuration.
        model_args: TRL's model keys: dtype, attention, quantization.
        trust_remote_code: Whether code beside the configuration may run.

    Returns:
        The model on the meta device.
    """
    return _built(language_class(config), config, model_args, trust_remote_code)


def classifier(config: Any, model_args: Any, trust_remote_code: bool = False) -> Any:
    """A sequence classifier with one label on paper; see `causal_model`."""
    from transformers import AutoModelForSequenceClassification

    config = with_outputs(config, ONE)
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = 0
    return _built(AutoModelForSequenceClassification, config, model_args, trust_remote_code)


def dtype_of(config: Any, model_args: Any) -> torch.dtype:
    """The number format that a model is loaded in."""
    if model_args.dtype not in (None, "auto"):
        found: torch.dtype = getattr(torch, model_args.dtype)
        return found
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def adapted(model: Any, peft_config: Any) -> Any:
    """The model with a new adapter of the configuration on it."""
    from peft import get_peft_model

    with torch.device("meta"):
        return get_peft_model(model, peft_config)


def _built(auto_class: Any, config: Any, model_args: Any, trust_remote_code: bool) -> Any:
    how = {"dtype": dtype_of(config, model_args), "trust_remote_code": trust_remote_code}
    if model_args.attn_implementation is not None:
        # Kernels that are not installed here count like sdpa, which keeps the same tensors.
        eager = model_args.attn_implementation == "eager"
        how["attn_implementation"] = "eager" if eager else "sdpa"
    with torch.device("meta"):
        model = auto_class.from_config(config, **how)
    _quantize(model, model_args)
    return model


def _quantize(model: Any, model_args: Any) -> None:
    from transformers.quantizers import AutoHfQuantizer
    from trl import get_quantization_config

    config = get_quantization_config(model_args)
    if config is None:
        return
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    quantizer.postprocess_model(model)
    for layer in model.modules():
        if hasattr(layer, "source_cls") and layer.bias is not None:  # made anew, in fp32
            layer.bias.data = layer.bias.data.to(model.dtype)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """All tensors that a model holds: weights, buffers and the scales of quantized weights.

    Args:
        module: A real model, or one on paper that `to_fake` has gone over.

    Returns:
        Each tensor once.
    """
    found = [*module.parameters(), *module.buffers()]
    part: Any
    for part in module.modules():
        state = getattr(getattr(part, "weight", None), "quant_state", None)
        for one in (state, getattr(state, "state2", None)):
            found += [v for v in vars(one).values() if isinstance(v, Tensor)] if one else []
        if hasattr(part, "init_8bit_state"):
            states = (getattr(part.weight, "SCB", None), part.state.SCB)
            found += [scales for scales in states if scales is not None]
    unique = {tensor.untyped_storage()._cdata: tensor for tensor in found}
    return list(unique.values())


def num_bytes(tensors: list[Tensor]) -> int:
    """Bytes of tensors' storages."""
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def model_bytes(module: nn.Module) -> int:
    """Bytes of all tensors that a model holds."""
    return num_bytes(tensors_of(module))


def to_fake(modules: list[nn.Module], mode: Any) -> None:
    """Turn meta tensors into fake ones of a device, and give quantized layers packed weights.

    Args:
        modules: Models on the meta device; tied weights stay tied, within and between them.
        mode: A FakeTensorMode.
    """
    bnb = sys.modules.get("bitsandbytes")  # whoever has such a layer has imported it
    done: dict[int, Tensor] = {}
    with mode:
        for module in modules:
            for part in module.modules():
                if bnb is not None and isinstance(part, bnb.nn.Linear4bit):
                    _pack_4bit(part)
                elif bnb is not None and isinstance(part, bnb.nn.Linear8bitLt):
                    _pack_8bit(part)
                group: Any
                for group in (part._parameters, part._buffers):
                    for name, tensor in list(group.items()):
                        if tensor is not None:
                            group[name] = _faked(tensor, done)


def _faked(tensor: Tensor, done: dict[int, Tensor]) -> Tensor:
    if not tensor.is_meta:
        return tensor
    if id(tensor) not in done:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        done[id(tensor)] = fake
        done[id(fake)] = fake
        fake.was = tensor  # type: ignore[attr-defined]  # keeps the id from being given again
    return done[id(tensor)]


def _pack_4bit(layer: Any) -> None:
    from bitsandbytes.functional import QuantState

    old = layer.weight
    shape, num = old.shape, old.numel()
    storage = old.quant_storage
    packed = torch.empty(math.ceil(num / 2 / storage.itemsize), 1, dtype=storage, device="cpu")
    weight = nn.Parameter(packed, requires_grad=False)
    scales = math.ceil(num / BLOCK_4BIT)
    known = {"blocksize": BLOCK_4BIT, "quant_type": old.quant_type, "dtype": old.dtype}
    known |= {"shape": shape, "code": torch.empty(TABLE_4BIT)}
    if old.compress_statistics:
        outer = QuantState(
            torch.empty(math.ceil(scales / BLOCK_NESTED), dtype=torch.float32),
            code=torch.empty(TABLE_NESTED),
            blocksize=BLOCK_NESTED,
            dtype=torch.float32,
        )
        offset = torch.empty((), dtype=torch.float32)
        inner = torch.empty(scales, dtype=torch.uint8)
        state = QuantState(inner, offset=offset, state2=outer, **known)
    else:
        state = QuantState(torch.empty(scales, dtype=torch.float32), **known)
    how = {"compress_statistics": old.compress_statistics, "quant_type": old.quant_type}
    vars(weight).update(quant_state=state, **how)
    layer.weight = weight
    layer.support_avx512bf16_for_cpu = False


def _pack_8bit(layer: Any) -> None:
    shape = layer.weight.shape
    weight = nn.Parameter(torch.empty(shape, dtype=torch.int8, device="cpu"), requires_grad=False)
    weight.CB, weight.SCB = weight.data, torch.empty(shape[0])  # type: ignore[attr-defined]
    layer.weight = weight
