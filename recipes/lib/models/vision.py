"""Models that read pictures beside text: their class, their processor, their language half."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import adapter_base
from recipes.lib.models.folders import fetch_adapter, is_adapter, load_errors, resolve_model

if TYPE_CHECKING:
    from trl import ModelConfig


def language_class(config: Any, name: str = "", *, shows_pictures: bool | None = None) -> Any:
    """The class of a language model, which may read pictures.

    Args:
        config: Its configuration.
        name: What messages call it.
        shows_pictures: Whether it is shown some; None for the class that it has for text, or else
            for pictures.

    Returns:
        AutoModelForCausalLM or AutoModelForImageTextToText.

    Raises:
        UserError: It is shown none, and has no class for text alone.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    is_of_text = not _reads(config) or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if shows_pictures is False and not is_of_text:
        raise UserError(
            f"model_name_or_path={name}: it reads pictures, and is shown none here; sft, dpo and "
            "grpo show those of rows with images."
        )
    seen = _reads(config) if shows_pictures else not is_of_text
    return AutoModelForImageTextToText if seen else AutoModelForCausalLM


def _reads(config: Any) -> bool:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _base(model_args: ModelConfig) -> tuple[str, str]:
    path, revision = resolve_model(model_args.model_name_or_path), model_args.model_revision
    while is_adapter(path := fetch_adapter(path, revision)):
        path, revision = adapter_base(path)
    return path, revision


def reads_pictures(model_args: ModelConfig, *, trust_remote_code: bool = False) -> bool:
    """Whether a model, or the base of an adapter, is of a class that reads pictures.

    Args:
        model_args: TRL's model keys; the name and its revision count.
        trust_remote_code: Whether code beside a model may run.

    Returns:
        False also of what cannot be loaded, which whoever loads it will say.
    """
    from transformers import AutoConfig

    own = {"trust_remote_code": trust_remote_code}
    try:
        path, revision = _base(model_args)
        with load_errors(path, "configuration"):
            return _reads(AutoConfig.from_pretrained(path, revision=revision, **own))
    except UserError:
        return False


def load_processor(model_args: ModelConfig, tokenizer: Any, *, trust_remote_code: bool) -> Any:
    """What makes a model's input of pictures and text.

    Args:
        model_args: TRL's model keys; the name and its revision count.
        tokenizer: The model's, with the chat template that is to be used; None for its own.
        trust_remote_code: Whether code beside a model may run.

    Returns:
        A processor with that tokenizer, which needs Pillow and no torchvision.

    Raises:
        UserError: There is none, or it needs what is not installed.
    """
    from transformers import AutoProcessor

    path, revision = _base(model_args)
    with load_errors(path, "processor of pictures"):
        processor = AutoProcessor.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code, backend="pil"
        )
    if tokenizer is not None:
        processor.tokenizer, processor.chat_template = tokenizer, tokenizer.chat_template
    return processor


def adapt_language_alone(model: Any, peft_config: Any) -> None:
    """Have new adapters stand in a model's language half: what sees stays as it was trained."""
    if peft_config is None:
        return
    names = [name for name, _ in model.named_modules()]
    inside = next((n for n, part in model.named_modules() if part is model.get_decoder()), "")
    if not inside:
        raise UserError(
            f"use_peft=true: {type(model).__name__} does not tell where its language half is; "
            "leave it out."
        )
    asked = peft_config.target_modules or ()
    for layer in [asked] if isinstance(asked, str) else asked:
        found = [one for one in names if one == layer or one.endswith(f".{layer}")]
        if found and not any(one.startswith(f"{inside}.") for one in found):
            raise UserError(
                f"lora_target_modules={layer}: it stands outside of {inside}, where adapters of "
                "models that read pictures stand; leave it out."
            )
    peft_config.exclude_modules = rf"(?!{re.escape(inside)}\.).*"
