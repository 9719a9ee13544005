"""Going on with a saved adapter where `use_peft` meets one, instead of putting another on it.

So a chain of runs stays one adapter on one base, also on a quantized base, which nothing can be
merged into.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import adapter_base, adapter_task, as_base_of, put_on
from recipes.lib.models.folders import is_adapter, resolve_model
from recipes.lib.models.policies import load_policy

if TYPE_CHECKING:
    from peft import PeftModel
    from trl import ModelConfig

# Keys of ModelConfig that give a new adapter its shape, and their names in an adapter's own file.
# Its layers are not among them: the file has their full names, whatever word they were asked by.
SHAPE = {"lora_r": "r"} | {key: key for key in ("lora_alpha", "use_dora", "use_rslora")}


def goes_on(model_args: ModelConfig) -> bool:
    """Whether a run goes on training the adapter that it starts from."""
    return bool(model_args.use_peft) and is_adapter(
        resolve_model(model_args.model_name_or_path or "")
    )


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
    path = resolve_model(name or "")
    if adapter_task(path) == "SEQ_CLS":
        raise UserError(
            f"model_name_or_path={name} is the adapter of a reward model; name a language model."
        )
    _refuse_other_shape(PeftConfig.from_pretrained(path), model_args)
    base, revision = adapter_base(path)
    with as_base_of(path):
        model = load_policy(
            replace(model_args, model_name_or_path=base, model_revision=revision),
            trust_remote_code=trust_remote_code,
        )
    return put_on(model, path, trainable=True)


def _refuse_other_shape(config: Any, model_args: ModelConfig) -> None:
    for key, field in SHAPE.items():
        asked, default = getattr(model_args, key), type(model_args)().__dict__[key]
        has = getattr(config, field, None)
        if asked not in (default, has):
            raise UserError(
                f"{key}={asked}: the run goes on with the adapter of "
                f"{model_args.model_name_or_path}, which has {has}; leave {key} out."
            )
