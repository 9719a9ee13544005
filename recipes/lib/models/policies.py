"""Loading policies: a run, a folder, an adapter on its base, or a Hub id, quantized or not.

Where `use_peft` meets a saved adapter, the run goes on with it instead of putting another on it. So
a chain of runs stays one adapter on one base, also on a quantized base, which nothing can be merged
into.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import (
    adapter_task,
    base_args,
    load_adapter,
    load_rounded,
    naming_adapter,
    quantized_args,
)
from recipes.lib.models.folders import (
    fetch_adapter,
    is_adapter,
    load_errors,
    refuse_missing_weights,
    resolve_model,
)
from recipes.lib.models.merging import merge_adapter, refuse_prompt
from recipes.lib.models.tokenizers import refuse_vocabulary
from recipes.lib.models.vision import language_class

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel
    from trl import ModelConfig

# Keys of ModelConfig that give a new adapter its shape, and their names in an adapter's own file.
# Its layers are not among them: the file has their full names, whatever word they were asked by.
SHAPE_KEYS = {"lora_r": "r"} | {key: key for key in ("lora_alpha", "use_dora", "use_rslora")}


def load_policy(
    model_args: ModelConfig, *, trust_remote_code: bool = False, shows_pictures: bool | None = False
) -> PreTrainedModel:
    """Load a causal language model.

    An adapter is loaded on its base (which may be an adapter in turn) and merged, so that a run
    can go on from any other run; quantization comes after that. The merged model is named after
    the adapter's folder: an adapter trained on it finds its way back.

    Args:
        model_args: TRL's model keys: name, revision, dtype, attention, quantization.
        trust_remote_code: Whether code beside a model may run.
        shows_pictures: As of `language_class`.

    Returns:
        The model, in evaluation mode, on the CPU or where quantization put it.

    Raises:
        UserError: Nothing is found, weights are missing, the adapter has another base or one that
            is stored quantized, the tokenizer has tokens that the model lacks, or it is a model
            of pictures and is shown none.
    """
    from transformers import AutoConfig

    path = resolve_model(model_args.model_name_or_path)
    folder = fetch_adapter(path, model_args.model_revision)
    if is_adapter(folder):
        model = _merged(folder, model_args, trust_remote_code, shows_pictures)
        model.name_or_path = path  # the Hub id of an adapter, and not where it was downloaded to
    else:
        with load_errors(path, "causal language model"):
            own = {"revision": model_args.model_revision, "trust_remote_code": trust_remote_code}
            config = AutoConfig.from_pretrained(path, **own)
            kind = language_class(config, path, shows_pictures=shows_pictures)
            model, info = kind.from_pretrained(
                path, output_loading_info=True, **own, **pretrained_options(model_args)
            )
        if "SequenceClassification" in str(model.config.architectures):
            raise _no_language_model(path)  # a tied one would load without a missing weight
        refuse_missing_weights(path, info, allowed=frozenset())
    refuse_vocabulary(model, folder, model_args.model_revision, trust_remote_code=trust_remote_code)
    return prepare_for_gradients(model)


def load_trained(model_args: ModelConfig, **own: Any) -> Any:
    """A policy as its training saw it: an adapter unmerged, on a base rounded as it was then.

    Args:
        model_args: TRL's model keys; only the name, its revision, dtype and attention count.
        own: Further arguments of `load_policy`.

    Returns:
        A PeftModel, or a full model where there is no adapter; in evaluation mode.

    Raises:
        UserError: As `load_policy`.
    """
    name = resolve_model(model_args.model_name_or_path)
    path = fetch_adapter(name, model_args.model_revision)
    if not is_adapter(path):
        return load_policy(model_args, **own)
    if adapter_task(path) == "SEQ_CLS":
        raise _no_language_model(name)
    of_base = base_args(path, model_args)
    with naming_adapter(path):
        base = load_policy(quantized_args(path, of_base) or of_base, **own)
    model = load_adapter(base, path).eval()
    refuse_prompt(model.active_peft_config, path)
    return model


def pretrained_options(model_args: ModelConfig) -> dict[str, Any]:
    """What from_pretrained gets from TRL's model keys."""
    from trl import get_quantization_config

    # TRL has bitsandbytes compute in the dtype of the model, which has to have a name.
    dtype = "float32" if model_args.dtype in (None, "auto") else model_args.dtype
    quantization = get_quantization_config(replace(model_args, dtype=dtype))
    given = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "quantization_config": quantization,
        "device_map": local_device_map() if quantization is not None else None,
        "use_safetensors": True,  # other formats can run code
    }
    return {key: value for key, value in given.items() if value is not None}


def local_device_map() -> dict[str, int] | None:
    """Where a process of several puts weights that are placed while they load: on its own card.

    Returns:
        A device map; None for one process or on the CPU, where transformers knows the place.
    """
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes == 1 or state.device.type == "cpu":
        return None
    return {"": state.device.index}


def _no_language_model(name: str) -> UserError:
    return UserError(f"model_name_or_path={name} is a reward model; name a language model.")


def _merged(
    path: str, model_args: ModelConfig, trust_remote_code: bool, shows_pictures: bool | None
) -> PreTrainedModel:
    if adapter_task(path) == "SEQ_CLS":
        raise _no_language_model(path)
    plain = base_args(path, model_args, load_in_4bit=False, load_in_8bit=False)
    own: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    own["shows_pictures"] = shows_pictures
    with naming_adapter(path):
        base = load_rounded(path, plain, partial(load_policy, **own))
    refuse_stored_quantized(base, path)
    merged = merge_adapter(load_adapter(base, path), path)
    if not is_quantized(model_args):
        return merged
    # Merged in full precision first: a merge into 4-bit weights would round what was learned.
    given = {"config": merged.config, "state_dict": merged.state_dict()}
    loaded = type(merged).from_pretrained(None, **given, **pretrained_options(model_args))
    loaded.name_or_path = path
    return loaded


def refuse_stored_quantized(base: Any, path: str) -> None:
    """Refuse a base whose own files are in few bits, for merging an adapter into it."""
    if getattr(base, "is_quantized", False):
        raise UserError(
            f"model_name_or_path={path}: its base {base.name_or_path} is stored quantized, "
            "and merging would round the adapter away; put the base in 16 bits under "
            "base_model_name_or_path of adapter_config.json."
        )


def is_quantized(model_args: ModelConfig) -> bool:
    """Whether the model is loaded with 4-bit or 8-bit weights."""
    return bool(model_args.load_in_4bit or model_args.load_in_8bit)


def prepare_for_gradients(model: Any) -> Any:
    """The same model; if quantized, kept in the form that gradients pass on every machine."""
    from recipes.lib.models.cpu_linear import use_fast_products

    if getattr(model, "is_quantized", False):
        disable_4bit_packing(model)
    use_fast_products(model)
    return model


def lora_config(model_args: ModelConfig, task_type: str) -> PeftConfig | None:
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
    elif model_args.use_dora and model_args.load_in_8bit:
        raise UserError(
            "use_dora=true: peft's DoRA cannot be trained on 8-bit weights; choose load_in_4bit, "
            "or leave it out."
        )
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


def placed(model: Any) -> Any:
    """A model where it is evaluated; one that rounding has put somewhere stays there."""
    model.eval()
    return model if getattr(model, "is_quantized", False) else model.to(evaluation_device())


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


def disable_4bit_packing(model: Any) -> None:
    """Stop bitsandbytes from packing 4-bit weights for evaluation, which lets no gradient through.

    On CPUs with AVX512-BF16 it packs at the first evaluation and does not undo it for training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def continues(model_args: ModelConfig) -> bool:
    """Whether a run goes on training the adapter that it starts from."""
    return bool(model_args.use_peft) and is_adapter(resolve_model(model_args.model_name_or_path))


def load_adapted_policy(model_args: ModelConfig, *, trust_remote_code: bool = False) -> PeftModel:
    """Load a policy whose adapter is trained on.

    Args:
        model_args: TRL's model keys; the name is that of an adapter's run or folder.
        trust_remote_code: Whether code beside its base may run.

    Returns:
        The adapter, trainable, on its base.

    Raises:
        UserError: A lora key contradicts the adapter's shape, or it is no language model's.
    """
    from peft import PeftConfig

    name = model_args.model_name_or_path
    path = resolve_model(name)
    if adapter_task(path) == "SEQ_CLS":
        raise _no_language_model(str(name))
    _refuse_other_shape(PeftConfig.from_pretrained(path), model_args)
    load = partial(load_policy, trust_remote_code=trust_remote_code)
    with naming_adapter(path):
        model = load_rounded(path, base_args(path, model_args), load)
    return load_adapter(model, path, trainable=True)


def _refuse_other_shape(config: PeftConfig, model_args: ModelConfig) -> None:
    for key, field in SHAPE_KEYS.items():
        asked, default = getattr(model_args, key), type(model_args)().__dict__[key]
        has = getattr(config, field, None)
        if asked not in (default, has):
            raise UserError(
                f"{key}={asked}: the run goes on with the adapter of "
                f"{model_args.model_name_or_path}, which has {has}; leave {key} out."
            )
