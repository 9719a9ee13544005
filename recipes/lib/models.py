"""Loading models: a run, a folder, an adapter on its base, or a Hub id.

What is loaded is what was trained: weights that would come up random are an error, not a warning.
A reward model is a sequence classifier with one label that reads the last token before the padding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.model_folders import (
    adapter_base,
    adapter_task,
    is_adapter,
    load_tokenizer,
    reading,
    refuse_random,
    resolve_model,
)

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import ModelConfig

__all__ = [
    "evaluation_device",
    "load_policy",
    "load_reward_model",
    "load_tokenizer",
    "peft_config",
    "resolve_model",
]
HEAD = frozenset({"score.weight"})  # the only weight that training a reward model may start anew


def load_policy(model_args: ModelConfig) -> PreTrainedModel:
    """Load a causal language model.

    An adapter is loaded on its base (which may be an adapter in turn) and merged, so that a run
    can go on from any other run. The merged model is named after the adapter's folder: an adapter
    trained on it finds its way back.

    Args:
        model_args: TRL's model keys: name, revision, dtype, attention, quantization.

    Returns:
        The model, in evaluation mode, on the CPU or where quantization put it.

    Raises:
        UserError: Nothing is found, weights are missing, or an adapter meets a quantized base.
    """
    from transformers import AutoModelForCausalLM

    path = resolve_model(model_args.model_name_or_path or "")
    if is_adapter(path):
        if model_args.load_in_4bit or model_args.load_in_8bit:
            raise UserError(
                f"model_name_or_path={path}: an adapter cannot be merged into a quantized base "
                "without changing it; leave load_in_4bit and load_in_8bit out."
            )
        return _merged(path, model_args)
    with reading(path, "causal language model"):
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            revision=model_args.model_revision,
            output_loading_info=True,
            **_options(model_args),
        )
    refuse_random(path, info, allowed=frozenset())
    return model


def load_reward_model(
    name_or_path: str,
    dtype: str = "float32",
    *,
    new_head: bool = False,
    model_args: ModelConfig | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model and its tokenizer; every weight of it was trained.

    Args:
        name_or_path: A run, a full reward model, a reward adapter with its score head, or a Hub id.
        dtype: "float32", "bfloat16", "float16" or "auto".
        new_head: For training: a language model will do, and only its score head is new. An
            adapter comes merged, ready to be trained on.
        model_args: Further keys of TRL's ModelConfig (revision, attention, quantization).

    Returns:
        A sequence classifier with one label, in evaluation mode, and its tokenizer; the model
        knows the pad token.

    Raises:
        UserError: Nothing is found, a weight would come up random, or there is not one label.
    """
    from trl import ModelConfig as Config

    path = resolve_model(name_or_path)
    args = replace(model_args or Config(), model_name_or_path=path, dtype=dtype)
    if is_adapter(path) and not new_head:
        model = _reward_adapter(path, args)
    else:
        model = _classifier(args, new_head)
    tokenizer = load_tokenizer(path, revision=args.model_revision)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def peft_config(model_args: ModelConfig, task_type: str) -> PeftConfig | None:
    """TRL's LoRA configuration for a task, with the score head saved where there is one.

    Args:
        model_args: TRL's model keys.
        task_type: "CAUSAL_LM" or "SEQ_CLS".

    Returns:
        The configuration, or None without use_peft.
    """
    from trl import get_peft_config

    saved = list(model_args.lora_modules_to_save or [])
    if task_type == "SEQ_CLS" and "score" not in saved:
        saved.append("score")
    return get_peft_config(
        replace(model_args, lora_task_type=task_type, lora_modules_to_save=saved or None)
    )


def evaluation_device() -> Any:
    """Where models are evaluated: the accelerator of this process, or the CPU."""
    from accelerate import PartialState

    return PartialState().device


def _options(model_args: ModelConfig) -> dict[str, Any]:
    from trl import get_quantization_config

    options = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "quantization_config": get_quantization_config(model_args),
    }
    return {key: value for key, value in options.items() if value is not None}


def _merged(path: str, model_args: ModelConfig) -> PreTrainedModel:
    from peft import PeftModel

    base = load_policy(
        replace(model_args, model_name_or_path=adapter_base(path), model_revision="main")
    )
    return _merge(PeftModel.from_pretrained(base, path), path)


def _merge(adapted: PeftModel, path: str) -> PreTrainedModel:
    model = adapted.merge_and_unload()
    model.requires_grad_(True)  # peft froze the base, and a merged model is a full one
    model.name_or_path = path  # so that an adapter trained on it names this folder as its base
    return model


def _classifier(model_args: ModelConfig, new_head: bool) -> PreTrainedModel:
    from transformers import AutoModelForSequenceClassification

    path = str(model_args.model_name_or_path)
    if is_adapter(path):
        if adapter_task(path) == "SEQ_CLS":
            return _merge(_reward_adapter(path, model_args), path)
        return _with_new_head(load_policy(model_args), path)
    with reading(path, "reward model"):
        _refuse_labels(path, model_args.model_revision)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=1,
            revision=model_args.model_revision,
            output_loading_info=True,
            **_options(model_args),
        )
    refuse_random(path, info, allowed=HEAD if new_head else frozenset())
    return model


def _reward_adapter(path: str, model_args: ModelConfig) -> PeftModel:
    from peft import PeftModel
    from safetensors import safe_open

    with safe_open(Path(path) / "adapter_model.safetensors", "pt") as weights:
        has_head = any(key.endswith("score.weight") for key in weights.keys())  # noqa: SIM118
    if adapter_task(path) != "SEQ_CLS" or not has_head:
        raise UserError(
            f"model_name_or_path={path}: an adapter without a score head is no reward model; train "
            "one from it with `rlhf reward`."
        )
    base = replace(
        model_args, model_name_or_path=resolve_model(adapter_base(path)), model_revision="main"
    )
    return PeftModel.from_pretrained(_classifier(base, new_head=True), path)


def _with_new_head(policy: PreTrainedModel, path: str) -> PreTrainedModel:
    from transformers import AutoModelForSequenceClassification

    config = type(policy.config).from_dict(policy.config.to_dict() | {"num_labels": 1})
    model = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    model.name_or_path = path
    return model.eval()


def _refuse_labels(path: str, revision: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, revision=revision)
    names = config.architectures or []
    if any("SequenceClassification" in name for name in names) and config.num_labels != 1:
        raise UserError(
            f"model_name_or_path={path}: it has {config.num_labels} labels and a reward model has "
            "one; name a model with one label."
        )
