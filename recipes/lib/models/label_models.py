"""Classifiers of texts or pictures: a pretrained backbone under a head, new or trained.

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

KINDS = {  # transformers' class and its models, by the column that they read
    "text": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    "image": ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
}
# Of a mean beside one state, in what float16 holds; and to keep tanh nearly straight, where a head
# still learns at the rates that are usual.
MUCH, LITTLE = 1e3, 3.0


def what_it_reads(model_args: ModelConfig, *, trust_remote_code: bool = False) -> str:
    """The column that a classifier of this model reads: text, or image.

    Args:
        model_args: As of `load_label_model`.
        trust_remote_code: As there.

    Raises:
        UserError: There is no such model, or no classifier on it.
    """
    import transformers

    path = _path(model_args)
    own = {"revision": model_args.model_revision, "trust_remote_code": trust_remote_code}
    with load_errors(path, "classifier"):
        config = transformers.AutoConfig.from_pretrained(path, **own)
    named = getattr(config, "auto_map", None) or {}
    for column, (kind, mapping) in KINDS.items():
        if type(config) in getattr(transformers, mapping) or kind in named:
            return column
    raise UserError(
        f"model_name_or_path={path}: transformers has no classifier of texts or pictures on "
        f"{config.model_type}; name another model."
    )


def load_label_model(
    model_args: ModelConfig,
    names: Sequence[str],
    *,
    read: str = "text",
    is_multi: bool = False,
    pooling: str = "default",
    trust_remote_code: bool = False,
) -> tuple[Any, Any, list[str]]:
    """Load a backbone with a head for labels, and what makes its inputs.

    Args:
        model_args: TRL's model keys; the name is that of a run, a folder or a Hub id.
        names: Of the labels. A head for the same ones goes on, any other is drawn anew.
        read: Of `what_it_reads`.
        is_multi: Whether a row may have several.
        pooling: "mean" has BERT's class read the mean of all tokens.
        trust_remote_code: Whether code beside the model may run.

    Returns:
        A classifier in evaluation mode, what makes its inputs, and the names of its outputs.

    Raises:
        UserError: It cannot be loaded, would come up random in part, or cannot be learned in.
    """
    import transformers

    path, kind = _path(model_args), getattr(transformers, KINDS[read][0])
    own = {"revision": model_args.model_revision, "trust_remote_code": trust_remote_code}
    with load_errors(path, "classifier"):
        known = known_names(transformers.AutoConfig.from_pretrained(path, **own), pooling)
        names = known if {*known} == {*names} else names
        model, info = kind.from_pretrained(
            path,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id=dict(zip(names, range(len(names)), strict=True)),
            problem_type=f"{'multi' if is_multi else 'single'}_label_classification",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **own,
            **pretrained_options(model_args),
        )
    if pooling == "mean":
        pool_by_mean(model)
    _refuse_random(path, model, info)
    if names is not known:
        _draw_heads(model)
    reader = (_tokenizer if read == "text" else _image_processor)(model, path, **own)
    return model.eval(), reader, [*names]


def known_names(config: Any, pooling: str) -> list[str]:
    """Names of the labels that a head can go on with: none where it has read something else."""
    is_same = pooling == "default" or getattr(config, "pooling", "") == pooling
    return label_names(config) if is_same else []


def label_names(config: Any) -> list[str]:
    """Names of a classifier's labels, in the order of its outputs."""
    return [str(config.id2label[number]) for number in range(config.num_labels)]


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


def _image_processor(model: Any, path: str, **own: Any) -> Any:
    from transformers import AutoImageProcessor

    if getattr(model.config, "num_channels", 3) != 3:
        raise UserError(
            f"model_name_or_path={path}: its pictures have {model.config.num_channels} channels, "
            "and pipelines give it three; name another model."
        )
    with load_errors(path, "image processor"):
        return AutoImageProcessor.from_pretrained(path, backend="pil", **own)


def _refuse_random(path: str, model: Any, info: dict[str, Any]) -> None:
    # Of other shapes are those of a head for other labels, as (name, shape, shape) or a name.
    other = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    inside = f"{model.base_model_prefix}."
    random = {key for key in (*info["missing_keys"], *other) if key.startswith(inside)}
    if getattr(model.config, "pooling", "") == "mean":
        random -= {f"{inside}pooler.dense.weight", f"{inside}pooler.dense.bias"}  # which were set
    if random:
        more = f" and {len(random) - 3} more" if len(random) > 3 else ""
        raise UserError(
            f"model_name_or_path={path}: its files do not hold {', '.join(sorted(random)[:3])}"
            f"{more} of the backbone, which would come up random; name a model whose files hold "
            "every weight."
        )


def pool_by_mean(model: Any) -> None:
    """Have BERT's class for sequences read the mean of all tokens, by one more layer.

    That layer attends to all tokens alike and adds so much of their mean to the first token that
    only the mean is left, normalised; the pooler is a tanh of a third of it. So the model stays a
    plain one. A head that has read something else is drawn anew.

    Raises:
        UserError: The model is another.
    """
    import copy

    import torch

    config = model.config
    if config.model_type != "bert":
        raise UserError(
            f"pooling=mean: BERT has that, and {config.model_type} does not; leave it out."
        )
    if getattr(config, "pooling", "") == "mean":
        return
    layer = copy.deepcopy(model.bert.encoder.layer[-1])
    same = torch.eye(config.hidden_size)
    with torch.no_grad():
        for one in layer.parameters():
            one.zero_()
        layer.attention.self.value.weight.copy_(same)
        layer.attention.output.dense.weight.copy_(MUCH * same)
        layer.attention.output.LayerNorm.weight.fill_(1.0)
        layer.output.LayerNorm.weight.fill_(1.0)
        model.bert.pooler.dense.weight.copy_(same / LITTLE)
        model.bert.pooler.dense.bias.zero_()
    model.bert.encoder.layer.append(layer)
    config.num_hidden_layers, config.pooling = config.num_hidden_layers + 1, "mean"


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
    # Such a head is given (width, 1, 1), and nothing else comes behind it.
    is_flat = any(isinstance(part, torch.nn.Flatten) for part in head.modules())
    setattr(model, name, torch.nn.Flatten() if is_flat else torch.nn.Identity())
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
    kind = None if type(model).__name__.endswith("ForImageClassification") else "SEQ_CLS"
    own = {"lora_task_type": kind, "lora_modules_to_save": saved}
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
