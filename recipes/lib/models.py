"""Loading models: a run, a folder, an adapter on its base, or a Hub id.

What is loaded is what was trained: weights that would come up random are an error, not a warning.
A reward model is a sequence classifier with one label that reads the last token before the padding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from recipes.lib.adapter_folders import adapter_base, adapter_keys, adapter_task, put_on
from recipes.lib.errors import UserError
from recipes.lib.model_folders import (
    fetch_adapter,
    is_adapter,
    load_tokenizer,
    reading,
    refuse_random,
    resolve_model,
)
from recipes.lib.policies import (
    is_quantized,
    load_policy,
    merge,
    options,
    unpacked,
)
from recipes.lib.vocabulary import refuse_vocabulary

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


def load_reward_model(
    name_or_path: str,
    dtype: str = "float32",
    *,
    new_head: bool = False,
    model_args: ModelConfig | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model and its tokenizer; every weight of it was trained.

    Args:
        name_or_path: A run, a full reward model, a reward adapter with its score head, or a Hub id.
        dtype: "float32", "bfloat16", "float16" or "auto".
        new_head: For training: a language model will do, and only its score head is new. An
            adapter comes merged, ready to be trained on.
        model_args: Further keys of TRL's ModelConfig (revision, attention, quantization).
        trust_remote_code: Whether code beside a model may run.

    Returns:
        A sequence classifier with one label, in evaluation mode, and its tokenizer; the model
        knows the pad token.

    Raises:
        UserError: Nothing is found, a weight would come up random, or there is not one label.
    """
    from trl import ModelConfig as Config

    name = resolve_model(name_or_path)
    revision = model_args.model_revision if model_args is not None else "main"
    path = fetch_adapter(name, revision)
    args = replace(model_args or Config(), model_name_or_path=path, dtype=dtype)
    if is_adapter(path) and not new_head:
        model: Any = _reward_adapter(path, args, trust_remote_code)
    else:
        model = _classifier(args, new_head, trust_remote_code)
    tokenizer = load_tokenizer(
        path, revision=args.model_revision, trust_remote_code=trust_remote_code
    )
    refuse_vocabulary(model, path, args.model_revision, tokenizer)
    if path != name:  # the Hub id of an adapter, and not where it was downloaded to
        model.name_or_path = name
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return unpacked(model).eval(), tokenizer


def peft_config(model_args: ModelConfig, task_type: str) -> PeftConfig | None:
    """TRL's LoRA configuration for a task, with the score head saved where there is one.

    Args:
        model_args: TRL's model keys.
        task_type: "CAUSAL_LM" or "SEQ_CLS".

    Returns:
        The configuration, or None without use_peft.

    Raises:
        UserError: The whole model would be trained in a format that is too coarse for it.
    """
    from trl import get_peft_config

    if not model_args.use_peft:
        _refuse_coarse(model_args)
    saved = list(model_args.lora_modules_to_save or [])
    if task_type == "SEQ_CLS" and "score" not in saved:
        saved.append("score")
    config = get_peft_config(
        replace(model_args, lora_task_type=task_type, lora_modules_to_save=saved or None)
    )
    if config is not None and model_args.model_revision != "main":
        config.revision = model_args.model_revision  # so that the adapter finds the same base
    return config


def evaluation_device() -> Any:
    """Where models are evaluated: the accelerator of this process, or the CPU."""
    from accelerate import PartialState

    return PartialState().device


def _refuse_coarse(model_args: ModelConfig) -> None:
    for key in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_args, key):
            raise UserError(
                f"{key}=true: quantized weights cannot be trained; set use_peft to train an "
                "adapter on them."
            )
    if model_args.dtype == "float16":
        raise UserError(
            "dtype=float16: steps of a full fine-tuning vanish or overflow in 16-bit floats of "
            "that kind; choose bfloat16 or float32 (fp16=true computes in it), or set use_peft."
        )


def _classifier(
    model_args: ModelConfig, new_head: bool, trust_remote_code: bool
) -> PreTrainedModel:
    from transformers import AutoModelForSequenceClassification

    path = str(model_args.model_name_or_path)
    if is_adapter(path):
        if adapter_task(path) == "SEQ_CLS":
            return merge(_reward_adapter(path, model_args, trust_remote_code), path)
        return _with_new_head(model_args, path, trust_remote_code)
    with reading(path, "reward model"):
        _refuse_labels(path, model_args.model_revision, trust_remote_code)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=1,
            revision=model_args.model_revision,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **options(model_args),
        )
    if new_head and set(info["missing_keys"]) - HEAD and not is_quantized(model_args):
        # A tied checkpoint may store its embeddings under the language model's head alone, which
        # a classifier does not read; the language model itself knows what is tied to what.
        return _with_new_head(model_args, path, trust_remote_code)
    refuse_random(path, info, allowed=HEAD if new_head else frozenset())
    return model


def _reward_adapter(path: str, model_args: ModelConfig, trust_remote_code: bool) -> PeftModel:
    has_head = any(key.endswith("score.weight") for key in adapter_keys(path))
    if adapter_task(path) != "SEQ_CLS" or not has_head:
        raise UserError(
            f"model_name_or_path={path}: an adapter without a score head is no reward model; train "
            "one from it with `rlhf reward`."
        )
    name, revision = adapter_base(path)
    base = replace(model_args, model_name_or_path=name, model_revision=revision)
    return put_on(_classifier(base, True, trust_remote_code), path)


def _with_new_head(model_args: ModelConfig, path: str, trust_remote_code: bool) -> PreTrainedModel:
    from transformers import AutoModelForSequenceClassification

    policy = load_policy(model_args, trust_remote_code=trust_remote_code)
    config = type(policy.config).from_dict(policy.config.to_dict() | {"num_labels": 1})
    config._name_or_path = policy.config._name_or_path  # where code of its own is looked for
    with reading(path, "reward model"):
        model = AutoModelForSequenceClassification.from_config(
            config, dtype=policy.dtype, trust_remote_code=trust_remote_code
        )
    model.base_model.load_state_dict(policy.base_model.state_dict())
    model.name_or_path = path
    return model.eval()


def _refuse_labels(path: str, revision: str, trust_remote_code: bool) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        path, revision=revision, trust_remote_code=trust_remote_code
    )
    names = config.architectures or []
    if any("SequenceClassification" in name for name in names) and config.num_labels != 1:
        raise UserError(
            f"model_name_or_path={path}: it has {config.num_labels} labels and a reward model has "
            "one; name a model with one label."
        )
