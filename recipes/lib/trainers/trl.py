"""Making TRL's trainers: their refusals in one sentence, the reference equal to the start."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer
from trl import ModelConfig

from recipes.lib.config.library_checks import NO_TEST_ROWS
from recipes.lib.data.problems import places_of, refuse_or_drop
from recipes.lib.data.tokenizer_fit import refused_by_template
from recipes.lib.errors import UserError
from recipes.lib.models.cpu_linear import use_fast_products
from recipes.lib.trainers.resumable import Resumable
from recipes.lib.trainers.resumable_sampling import ResumableSampling


def make_trl_trainer(
    trainer_class: Any, model: Any, model_args: ModelConfig, **arguments: Any
) -> Any:
    """Make one of TRL's trainers.

    Args:
        trainer_class: The class.
        model: The policy, loaded.
        model_args: TRL's model keys that it was loaded with.
        arguments: Further arguments of the class.

    Returns:
        The trainer. Its reference model, if it has one, has the weights of the policy.

    Raises:
        UserError: TRL refuses an argument, or the reference cannot be made.
    """
    from jinja2.exceptions import TemplateError

    try:
        trainer = resumable(trainer_class)(model=model, **arguments)
    except UserError:
        raise
    except ValueError as error:  # what TRL finds wrong with keys and data; it may run over lines
        raise UserError(_sentence(error)) from error
    except TemplateError as error:
        tokenizer = arguments["processing_class"]
        for rows in (arguments["train_dataset"], arguments["eval_dataset"]):
            if hasattr(rows, "__len__"):
                problems = refused_by_template(rows, tokenizer, tokenizer.chat_template)
                refuse_or_drop("dataset_name", problems, places_of(rows), "refuse")
        raise UserError(
            f"the chat template cannot render the data ({' '.join(str(error).split())}); name "
            "another as chat_template_path."
        ) from error
    if not (trainer.args.bf16 or trainer.args.fp16):
        round_trained(trainer.model)
    use_fast_products(trainer.model)
    if getattr(trainer, "ref_model", None) is not None:
        _align_reference(trainer, model, model_args)
        use_fast_products(trainer.ref_model)
    return trainer


def resumable(trainer_class: Any) -> Any:
    """A class of TRL's trainers whose runs lose nothing, under the same name."""
    if issubclass(trainer_class, Resumable):
        return trainer_class
    samples = hasattr(trainer_class, "_generate_and_score_completions")
    mixin = ResumableSampling if samples else Resumable
    return type(trainer_class.__name__, (mixin, trainer_class), {})


def _sentence(error: ValueError) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    if "didn't pass an `eval_dataset`" in said:
        return NO_TEST_ROWS
    if "ParamWrapper does not work with use_dora" in said:
        return (
            "use_dora=true: peft has no DoRA for the experts of a mixture; leave it out, or name "
            "the layers of the attention as lora_target_modules."
        )
    if "No `target_modules`" in said:
        return (
            "lora_target_modules is missing: peft knows no default for this class of models; name "
            "the layers, or all-linear."
        )
    if "lora_dropout" in said:
        return f"lora_dropout: {said}; set lora_dropout=0 or name other lora_target_modules."
    return f"{said}."


def round_trained(model: Any, dtype: torch.dtype | None = None) -> None:
    """Set the number formats of what is trained on quantized weights.

    TRL rounds it to bfloat16, for its autocast. Without autocast small steps of an adapter would be
    lost, and a score head would not fit the trunk.

    Args:
        model: The model; nothing happens where its weights are not quantized.
        dtype: TRL's format; None for those without autocast.
    """
    if not getattr(model, "is_quantized", False):
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (dtype is None or "lora_magnitude_vector" not in name):
            own = torch.float32 if "lora_" in name else model.get_base_model().dtype
            parameter.data = parameter.data.to(dtype or own)


def _align_reference(trainer: Trainer, model: Any, model_args: ModelConfig) -> None:
    # TRL loads the reference by the name in the policy's configuration. For a merged adapter that
    # is its base, and it is the newest revision: not what the policy started from.
    named = model.config._name_or_path == model.name_or_path
    if named and model_args.model_revision == "main":
        return
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError(
            f"model_name_or_path={model_args.model_name_or_path}: TRL would take another model as "
            "the reference, whose shards cannot be replaced; set use_peft, or merge the adapter."
        )
    reference = trainer.accelerator.unwrap_model(trainer.ref_model)
    with torch.no_grad():
        reference.load_state_dict(model.state_dict())
