"""GGUF files of models and of LoRA adapters, for llama.cpp and what is built on it.

The packages `gguf` and transformers know the names; what llama.cpp takes for granted and which
weights it has turned stands here. A file is read back by transformers' reader before it counts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import BASE_QUANTIZATION, adapter_keys
from recipes.lib.models.folders import is_adapter
from recipes.lib.publishing.gguf_vocabulary import KEY, agreement, vocabulary_keys
from recipes.lib.publishing.modelfile import begins_with_bos, end_ids

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's numbers of them
CLASSES = {f"{name}ForCausalLM": name.lower() for name in ("Llama", "Qwen2", "Qwen3", "Gemma3")}
# Largest error of a tensor, as a share of its size, and largest KL from the trained model.
LIMITS = {"f32": (1e-4, 1e-6), "f16": (1e-3, 1e-3), "q8_0": (1e-2, 3e-2)}


def model_keys(model: Any, name: str) -> dict[str, Any]:
    """The keys of a GGUF file that are the shape of its model.

    Args:
        model: The whole model.
        name: Of the run.

    Returns:
        Values by key, without the architecture, which the writer adds.

    Raises:
        UserError: llama.cpp would compute something else.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    config, arch = model.config, CLASSES.get(type(model).__name__, "")
    if not arch or getattr(model, "is_quantized", False):
        how = "stored in few bits" if arch else f"of the class {type(model).__name__}"
        raise UserError(
            f"run={name}: a model {how} cannot be a GGUF file; {', '.join(CLASSES)} can, whole."
        )
    ropes = config.rope_parameters
    rope = ropes.get("full_attention", ropes)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    given = config.to_dict() | {"rope_type": rope["rope_type"]}
    for key, values in _granted(config, arch, head_dim).items():
        if given.get(key, values[0]) not in values:
            raise UserError(
                f"run={name}: its config.json has {key}={given[key]}, which llama.cpp does not do "
                f"for {arch}; choose to=nf4 or to=int8."
            )
    keys = {key: given[of] for key, of in GGUF_CONFIG_MAPPING[arch].items() if of in given}
    keys |= dict.fromkeys(("attention.key_length", "attention.value_length"), head_dim)
    keys |= {"rope.dimension_count": head_dim, "rope.freq_base": float(rope["rope_theta"])}
    keys["vocab_size"] = model.get_input_embeddings().weight.shape[0]
    if rope["rope_type"] == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if arch == "gemma3":
        keys["rope.freq_base_swa"] = float(ropes["sliding_attention"]["rope_theta"])
        keys["attention.sliding_window"] = config.sliding_window
    return {f"{arch}.{key}": value for key, value in keys.items()}


def _granted(config: Any, arch: str, head_dim: int) -> dict[str, list[Any]]:
    """What llama.cpp takes for granted of a configuration: values by key."""
    off = ["attention_bias", "mlp_bias", "use_sliding_window", "final_logit_softcapping"]
    ropes = ["default", "linear", *(["llama3"] if arch == "llama" else [])]
    if arch != "gemma3":
        return {key: [False, None] for key in off} | {"hidden_act": ["silu"], "rope_type": ropes}
    off += ["attn_logit_softcapping", "use_bidirectional_attention"]
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)]
    return {key: [False, None] for key in off} | {
        "hidden_activation": ["gelu_pytorch_tanh"],
        "layer_types": [kinds],
        "query_pre_attn_scalar": [config.hidden_size // heads if layers == 62 else head_dim],
        "rope_type": ropes,
    }


def file_keys(model: Any, tokenizer: Any, outtype: str, name: str) -> dict[str, Any]:
    """All keys of a GGUF file; as `model_keys`, and refuses tokens that llama.cpp does not make."""
    num_rows = model.get_input_embeddings().weight.shape[0]
    keys = model_keys(model, name) | vocabulary_keys(tokenizer, num_rows, name)
    keys |= {"general.type": "model", "general.name": Path(name).name}
    keys |= {"general.file_type": FILE_TYPES[outtype], "general.quantization_version": 2}
    keys |= {f"{KEY}add_bos_token": begins_with_bos(tokenizer), f"{KEY}add_eos_token": False}
    keys |= {f"{KEY}eot_token_id": number for number in end_ids(model, tokenizer)[1:2]}
    if template := tokenizer.chat_template:
        whole = template if isinstance(template, str) else template["default"]
        keys["tokenizer.chat_template"] = whole
    return keys


def write_model(path: Path, model: Any, keys: dict[str, Any], outtype: str) -> None:
    """Write a model; the keys are those of `file_keys`."""
    state, rope = model.state_dict(), model.config.rope_parameters
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        del state["lm_head.weight"]
    tensors = {_place(model, key): _turned(model, key, one) for key, one in state.items()}
    if rope.get("rope_type") == "llama3":
        rotary = model.model.rotary_emb
        plain = rope["rope_theta"] ** -torch.linspace(0, 1, len(rotary.inv_freq) + 1)[:-1]
        tensors["rope_freqs.weight"] = plain / rotary.inv_freq.cpu()
    _write(path, model, keys, tensors, outtype)


def _write(
    path: Path, model: Any, keys: dict[str, Any], tensors: dict[str, Tensor], outtype: str
) -> None:
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants

    writer = GGUFWriter(path, CLASSES[type(model).__name__])
    for key, value in keys.items():
        kind = GGUFValueType.get_type(value)
        is_number = kind == GGUFValueType.INT32
        writer.add_key_value(key, value, GGUFValueType.UINT32 if is_number else kind)
    for name, tensor in tensors.items():
        whole = "f16" if tensor.shape[-1] % 32 and outtype == "q8_0" else outtype
        stored = GGMLQuantizationType[("f32" if tensor.ndim == 1 else whole).upper()]
        data = quants.quantize(tensor.detach().float().cpu().numpy(), stored)
        writer.add_tensor(name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _place(model: Any, name: str) -> str:
    from gguf import MODEL_ARCH, get_tensor_name_map

    arch = MODEL_ARCH[CLASSES[type(model).__name__].upper()]
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    return str(names.get_name(name, (".weight", ".bias")))


def _turned(model: Any, name: str, tensor: Tensor) -> Tensor:
    """A weight as llama.cpp computes with it."""
    arch, config = CLASSES[type(model).__name__], model.config
    if arch == "gemma3" and name.endswith("norm.weight"):
        return tensor + 1
    if arch == "llama" and (found := re.search(r"\.([qk])_proj\.", name)):
        # It rotates neighbours, and transformers one half with the other.
        heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
        apart = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
        return apart.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


@torch.no_grad()
def read_back(path: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Put the weights of a file into the model that it was made of, by transformers' reader.

    Args:
        path: The file.
        model: The model; it is changed.
        tokenizer: Its tokenizer.

    Returns:
        `tensors` (how many), `tensor_error` (the largest, as a share of the size of its tensor) and
        `tokenization` (share of the sample texts that llama.cpp splits alike).
    """
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    own = dict(model.named_parameters())
    errors = [float((found[k] - own[k]).norm() / own[k].norm().clamp(min=1e-9)) for k in found]
    model.load_state_dict(found, strict=False)
    fields = {key: field.contents() for key, field in GGUFReader(path).fields.items()}
    is_whole = own.keys() == found.keys()
    numbers = {"tensors": len(found), "tensor_error": max(errors) if is_whole else float("inf")}
    return numbers | {"tokenization": agreement(tokenizer, fields)}


def refuse_difference(numbers: dict[str, Any], outtype: str, name: str) -> None:
    """Refuse a file that says something else than the trained model, by its comparison.

    Raises:
        UserError: Weights, logits or tokens differ by more than the format explains.
    """
    limits = dict(zip(("tensor_error", "kl_per_token"), LIMITS[outtype], strict=True))
    odd = [f"{key} {numbers[key]:.1e}" for key, most in limits.items() if not numbers[key] <= most]
    if odd or numbers["tokenization"] < 1:
        raise UserError(
            f"run={name}: in {outtype} it says something else than the trained model "
            f"({', '.join(odd) or 'tokens'}); choose outtype=f32, or to=nf4."
        )


def refuse_adapter(folder: str, name: str) -> None:
    """Refuse an adapter that cannot be a GGUF adapter on its base.

    Raises:
        UserError: Its base was rounded, or it is more than LoRA on the matrices of the blocks.
    """
    if not is_adapter(folder):
        raise UserError(f"run={name}: it is a whole model; choose to=gguf.")
    odd = [key for key in adapter_keys(folder) if not re.search(r"_proj\.lora_[AB]\.weight$", key)]
    odd += ["a rounded base"] if (Path(folder) / BASE_QUANTIZATION).is_file() else []
    if odd:
        raise UserError(
            f"run={name}: it has {min(odd)}, which a GGUF adapter cannot hold; choose to=gguf, "
            "which merges it."
        )


def write_adapter(path: Path, adapted: Any, name: str) -> dict[str, Any]:
    """Write a LoRA adapter, in float32, and read it back.

    Args:
        path: The file.
        adapted: The adapter on its base.
        name: Of the run.

    Returns:
        `tensors`, how many, `alpha` (llama.cpp's factor is alpha by the rank) and `tensor_error`,
        the largest of what is added to a weight, as a share of its size.

    Raises:
        UserError: The file adds something else than the adapter.
    """
    base, tensors = adapted.get_base_model(), {}
    layers = {key: one for key, one in base.named_modules() if getattr(one, "lora_A", None)}
    alphas = [one.scaling["default"] * one.r["default"] for one in layers.values()]
    for (key, one), alpha in zip(layers.items(), alphas, strict=True):
        place, outer = _place(base, f"{key}.weight"), one.lora_B["default"].weight
        tensors[f"{place}.lora_a"] = one.lora_A["default"].weight
        tensors[f"{place}.lora_b"] = _turned(base, f"{key}.", outer) * (alpha / alphas[0])
    keys = {"general.type": "adapter", "general.name": Path(name).name, "adapter.type": "lora"}
    _write(path, base, keys | {"adapter.lora.alpha": float(alphas[0])}, tensors, "f32")
    error = _adapter_error(path, base, layers)
    if not error <= LIMITS["f32"][0]:
        raise UserError(f"run={name}: its file adds something else ({error:.1e}); choose to=gguf.")
    return {"tensors": len(tensors), "alpha": float(alphas[0]), "tensor_error": error}


@torch.no_grad()
def _adapter_error(path: Path, base: Any, layers: dict[str, Any]) -> float:
    from gguf import GGUFReader

    reader, errors = GGUFReader(path), []
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    for key, layer in layers.items():
        place = _place(base, f"{key}.weight")
        inner, outer = found[f"{place}.lora_a"], found[f"{place}.lora_b"]
        added = _turned(base, f"{key}.", layer.get_delta_weight("default").float().cpu())
        gap = alpha / len(inner) * outer @ inner - added
        errors.append(float(gap.norm() / added.norm().clamp(min=1e-9)))
    return max(errors)
