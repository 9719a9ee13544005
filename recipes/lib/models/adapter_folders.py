"""Adapters: their base, their weights, and whether the two belong together.

An adapter is trained on one base. On another one its weights are noise at best, so every weight in
its file has to find its place, and every place that its configuration makes has to be filled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.models.folders import is_adapter, resolve_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel
    from trl import ModelConfig

WEIGHTS = "adapter_model.safetensors"
BASE_QUANTIZATION = "base_quantization.json"  # how the base was rounded that it was trained on
# TRL's keys for it, by the names of bitsandbytes.
QUANTIZATION_KEYS = {
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
}


def adapter_base(path: str | Path) -> tuple[str, str]:
    """The model that an adapter folder was trained on.

    Args:
        path: The adapter folder.

    Returns:
        Its folder or Hub id, and its revision.

    Raises:
        UserError: The adapter names none, or the folder that it names is gone.
    """
    config = _config(path)
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{path}: adapter_config.json names no base model; put its path or Hub id under "
            "base_model_name_or_path."
        )
    try:
        found = resolve_model(str(base))
    except UserError as error:
        raise UserError(
            f"model_name_or_path={path}: it is an adapter on {base}, which is not there; put that "
            "model back, or write its new place under base_model_name_or_path of "
            "adapter_config.json."
        ) from error
    if Path(found).resolve() == Path(path).resolve():
        raise UserError(
            f"model_name_or_path={path}: adapter_config.json names the adapter itself as its base; "
            "put the base model under base_model_name_or_path."
        )
    return found, str(config.get("revision") or "main")


def base_args(path: str | Path, model_args: ModelConfig, **changes: Any) -> ModelConfig:
    """TRL's model keys for the base of an adapter."""
    name, revision = adapter_base(path)
    return replace(model_args, model_name_or_path=name, model_revision=revision, **changes)


def quantized_args(path: str | Path, model_args: ModelConfig) -> ModelConfig | None:
    """TRL's model keys with the base rounded as it was when the adapter was trained.

    Args:
        path: The adapter folder.
        model_args: Keys for its base.

    Returns:
        The keys; None where it was not rounded, nothing is known, or the keys ask for rounding.
    """
    file = Path(path) / BASE_QUANTIZATION
    if model_args.load_in_4bit or model_args.load_in_8bit or not file.is_file():
        return None
    from transformers import PretrainedConfig

    name, revision = model_args.model_name_or_path, model_args.model_revision
    if not is_adapter(name):
        stored, _ = PretrainedConfig.get_config_dict(name, revision=revision)
        if "quantization_config" in stored:
            return None  # it comes rounded
    known = json.loads(file.read_text(encoding="utf-8"))
    return replace(model_args, **{key: known[key] for key in QUANTIZATION_KEYS.values()})


def load_rounded(
    path: str | Path, model_args: ModelConfig, load: Callable[[ModelConfig], Any]
) -> Any:
    """The base of an adapter, with the weights that the adapter was trained on.

    Args:
        path: The adapter folder.
        model_args: Keys for its base.
        load: Loads a model by such keys.
    """
    rounded = quantized_args(path, model_args)
    return load(model_args) if rounded is None else _dequantize(load(rounded))


def _dequantize(model: Any) -> Any:
    """A rounded model with the same weights in its number format, as an adapter saw them."""
    known = _quantization(model)
    model = model.dequantize()
    model.base_quantization = known
    return model


def save_base_quantization(model: Any, folder: str | Path) -> None:
    """Write beside an adapter how its base was rounded, if it was."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else None
    known = getattr(base, "base_quantization", None) or (base is not None and _quantization(base))
    if known:
        text = json.dumps(known, indent=2) + "\n"
        (Path(folder) / BASE_QUANTIZATION).write_text(text, encoding="utf-8")


def _quantization(model: Any) -> dict[str, Any]:
    found = getattr(model.config, "quantization_config", None)
    known = found if isinstance(found, dict) or found is None else found.to_dict()
    if not known or not (known.get("load_in_4bit") or known.get("load_in_8bit")):
        return {}  # such as GPTQ, which rounds when it is stored and not when it is loaded
    return {key: known.get(name) for name, key in QUANTIZATION_KEYS.items()}


@contextmanager
def naming_adapter(path: str | Path) -> Iterator[None]:
    """Name the adapter where its base cannot be loaded."""
    try:
        yield
    except UserError as error:
        told = str(error).removeprefix("model_name_or_path=")
        raise UserError(f"model_name_or_path={path}: its base {told}") from error


def adapter_task(path: str | Path) -> str:
    """What an adapter folder was trained for: CAUSAL_LM or SEQ_CLS."""
    return str(_config(path).get("task_type"))


def adapter_keys(path: str | Path) -> set[str]:
    """Names of the weights that an adapter folder holds.

    Raises:
        UserError: It has no weights in safetensors' format.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path) / WEIGHTS
    if not file.is_file():
        raise UserError(
            f"model_name_or_path={path}: the adapter has no {WEIGHTS}; other formats can run code "
            "and are not read, so save it with safetensors."
        )
    try:
        with safe_open(file, "pt") as weights:
            return set(weights.keys())
    except SafetensorError as error:
        raise UserError(
            f"model_name_or_path={path}: {WEIGHTS} is broken ({error}); copy it again."
        ) from error


def load_adapter(base: PreTrainedModel, path: str, *, trainable: bool = False) -> PeftModel:
    """Load an adapter onto the model that it was trained on.

    Args:
        base: The base; it is changed.
        path: The adapter folder.
        trainable: Whether it is trained on.

    Returns:
        The adapted model.

    Raises:
        UserError: The adapter belongs to another base, or its file cannot be used.
    """
    from peft import PeftModel, get_peft_model_state_dict

    stored = adapter_keys(path)
    rows = _stored_vocabulary(path, base)
    if rows is not None:  # a chat template brought tokens, and with them new embeddings
        base.resize_token_embeddings(rows, mean_resizing=False)
    try:
        model = PeftModel.from_pretrained(base, path, is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError) as error:
        raise _other_base(path, str(base.name_or_path), str(error)) from error
    places = {
        name
        for name in get_peft_model_state_dict(model, save_embedding_layers=False)
        if ".lora_" in name
    }
    astray = sorted(places ^ {name for name in stored if ".lora_" in name})
    if astray:
        reason = f"{len(astray)} weights find no counterpart, first {astray[0]}"
        raise _other_base(path, str(base.name_or_path), reason)
    return model


def _stored_vocabulary(path: str, base: PreTrainedModel) -> int | None:
    """Rows of the embeddings that an adapter brings along, if the base has others."""
    from safetensors import safe_open

    inner = base.get_input_embeddings()
    place = next(name for name, module in base.named_modules() if module is inner)
    own = {key for key in adapter_keys(path) if f"{place}." in key and key.endswith(".weight")}
    with safe_open(Path(path) / WEIGHTS, "pt") as weights:
        rows = {weights.get_slice(key).get_shape()[0] for key in own if ".lora_" not in key}
    return rows.pop() if rows and inner.weight.shape[0] not in rows else None


def _other_base(path: str, base: str, reason: str) -> UserError:
    sentence = " ".join(reason.split()).rstrip(".")
    shown = sentence if len(sentence) <= 200 else sentence[:197] + "..."
    return UserError(
        f"model_name_or_path={path}: the adapter does not fit its base {base} ({shown}); name the "
        "model that it was trained on under base_model_name_or_path of adapter_config.json."
    )


def _config(path: str | Path) -> dict[str, Any]:
    file = Path(path) / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy it again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} must hold keys and values; copy it again.")
    return config
