"""Classifiers with names for their labels: a pretrained backbone under a head, new or trained.

What pretraining left has to be in the files: a backbone whose weights come up random is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.models.folders import is_adapter, load_errors, resolve_model
from recipes.lib.models.policies import pretrained_options
from recipes.lib.models.tokenizers import load_tokenizer, refuse_vocabulary

if TYPE_CHECKING:
    import torch
    from trl import ModelConfig


def load_label_model(
    model_args: ModelConfig,
    names: Sequence[str],
    *,
    is_multi: bool = False,
    trust_remote_code: bool = False,
) -> tuple[Any, Any, list[str]]:
    """Load a backbone with a head for labels, and its tokenizer.

    Args:
        model_args: TRL's model keys; the name is that of a run, a folder or a Hub id.
        names: Of the labels. A head for the same ones goes on, any other is drawn anew.
        is_multi: Whether a row may have several.
        trust_remote_code: Whether code beside the model may run.

    Returns:
        A sequence classifier in evaluation mode, its tokenizer, and the names in the order of its
        outputs.

    Raises:
        UserError: There is none, weights of the backbone would come up random, or they are asked
            for in a format that cannot be learned in and merged.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    path = _path(model_args)
    own = {"revision": model_args.model_revision, "trust_remote_code": trust_remote_code}
    with load_errors(path, "classifier"):
        config = AutoConfig.from_pretrained(path, **own)
        labels = [str(config.id2label[number]) for number in range(config.num_labels)]
        if is_same := {*labels} == {*names}:
            names = labels
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
            problem_type=f"{'multi' if is_multi else 'single'}_label_classification",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **own,
            **pretrained_options(model_args),
        )
    _refuse_random(path, model, info)
    if not is_same:
        _draw_heads(model)
    return model.eval(), _tokenizer(model, path, **own), [*names]


def _path(model_args: ModelConfig) -> str:
    path = resolve_model(model_args.model_name_or_path)
    if is_adapter(path):
        raise UserError(
            f"model_name_or_path={model_args.model_name_or_path}: an adapter; merge it into its "
            "base first (rlhf merge), and name the result."
        )
    for key in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_args, key):
            raise UserError(f"{key}=true: classifiers are trained and saved whole; leave it out.")
    if model_args.dtype == "float16":
        raise UserError(
            "dtype=float16: steps of a classifier vanish in 16-bit floats of that kind; choose "
            "float32 or bfloat16."
        )
    return path


def _tokenizer(model: Any, path: str, **own: Any) -> Any:
    tokenizer = load_tokenizer(path, **own, keeps_end=True)
    refuse_vocabulary(model, path, own["revision"], tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _refuse_random(path: str, model: Any, info: dict[str, Any]) -> None:
    # Of other shapes are those of a head for other labels, as (name, shape, shape) or a name.
    other = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    inside = f"{model.base_model_prefix}."
    random = [key for key in sorted({*info["missing_keys"], *other}) if key.startswith(inside)]
    if random:
        more = f" and {len(random) - 3} more" if len(random) > 3 else ""
        raise UserError(
            f"model_name_or_path={path}: its files do not hold {', '.join(random[:3])}{more} of "
            "the backbone, which would come up random; name a model whose files hold every weight."
        )


def _draw_heads(model: Any) -> None:
    """Draw the heads anew, which may be those for as many other labels."""
    import torch

    for part in (part for head in heads_of(model).values() for part in head.modules()):
        if isinstance(part, torch.nn.Linear):
            part.reset_parameters()


def heads_of(model: Any) -> dict[str, torch.nn.Module]:
    """The parts of a classifier with weights beside its backbone, by name."""
    return {
        name: part
        for name, part in model.named_children()
        if name != model.base_model_prefix and any(True for _ in part.parameters())
    }


@contextmanager
def headless(model: Any) -> Iterator[bool]:
    """Have a classifier give what its head reads in place of logits, for a while.

    Yields:
        Whether it can: one head, which nothing else stands behind.
    """
    import torch

    heads = heads_of(model)
    name, head = next(iter(heads.items()))
    setattr(model, name, torch.nn.Identity())
    try:
        yield len(heads) == 1
    finally:
        setattr(model, name, head)


def adapt(model: Any, model_args: ModelConfig) -> Any:
    """A classifier with LoRA adapters beside its head, where that is asked for."""
    if not model_args.use_peft:
        return model
    from dataclasses import replace

    from peft import get_peft_model
    from trl import get_peft_config

    saved = [*(model_args.lora_modules_to_save or ()), *heads_of(model)]
    own = {"lora_task_type": "SEQ_CLS", "lora_modules_to_save": saved}
    try:
        return get_peft_model(model, get_peft_config(replace(model_args, **own)))
    except ValueError as error:
        raise UserError(
            f"lora_target_modules={model_args.lora_target_modules}: "
            f"{' '.join(str(error).split()).rstrip('.')}; name the layers, or all-linear."
        ) from error


def merged(model: Any) -> Any:
    """A plain classifier: adapters become part of its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
