"""Making TRL's trainers: their refusals in one sentence, the reference equal to the start."""

from __future__ import annotations

from typing import Any

import torch

from recipes.lib.errors import UserError


def make(trainer_class: Any, model: Any, model_args: Any, **arguments: Any) -> Any:
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
    try:
        trainer = trainer_class(model=model, **arguments)
    except UserError:
        raise
    except ValueError as error:  # what TRL finds wrong with keys and data; it may run over lines
        raise UserError(f"{' '.join(str(error).split()).rstrip('.')}.") from error
    if getattr(trainer, "ref_model", None) is not None:
        _align_reference(trainer, model, model_args)
    return trainer


def _align_reference(trainer: Any, model: Any, model_args: Any) -> None:
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
