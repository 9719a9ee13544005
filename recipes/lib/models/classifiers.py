"""Loading models: a run, a folder, an adapter on its base, or a Hub id.

What is loaded is what was trained: weights that would come up random are an error, not a warning.
A reward model is a sequence classifier with one label, or with those that `reward_heads` knows; it
reads the last token before the padding.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import (
    WEIGHTS,
    adapter_keys,
    adapter_task,
    base_args,
    load_adapter,
    load_rounded,
    naming_adapter,
)
from recipes.lib.models.folders import (
    fetch_adapter,
    is_adapter,
    load_errors,
    refuse_missing_weights,
    resolve_model,
)
from recipes.lib.models.merging import merge_adapter
from recipes.lib.models.policies import (
    _refuse_other_shape,
    is_quantized,
    load_policy,
    prepare_for_gradients,
    pretrained_options,
)
from recipes.lib.models.reward_heads import ONE, RewardHeads, adapter_heads, heads_of, name_outputs
from recipes.lib.models.tokenizers import load_tokenizer, refuse_vocabulary

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from trl import ModelConfig

HEAD = frozenset({"score.weight"})  # the only weight that training a reward model may start anew


def load_reward_model(
    name_or_path: str,
    dtype: str = "float32",
    *,
    new_head: bool = False,
    heads: RewardHeads | None = None,
    model_args: ModelConfig | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model and its tokenizer; every weight of it was trained.

    Args:
        name_or_path: A run, a full reward model, a reward adapter with its score head, or a Hub id.
        dtype: "float32", "bfloat16", "float16" or "auto".
        new_head: For training: a language model will do, and only its score head is new. An
            adapter comes merged, ready to be trained on.
        heads: Its outputs, where they are to be new; None for those that it has, or one.
        model_args: Further keys of TRL's ModelConfig (revision, attention, quantization).
        trust_remote_code: Whether code beside a model may run.

    Returns:
        A sequence classifier in evaluation mode, and its tokenizer; the model knows the pad token.

    Raises:
        UserError: Nothing is found, a weight would come up random, or there are other outputs than
            those of a reward model.
    """
    from trl import ModelConfig as Config

    name = resolve_model(name_or_path)
    revision = model_args.model_revision if model_args is not None else "main"
    path = fetch_adapter(name, revision)
    args = replace(model_args or Config(), model_name_or_path=path, dtype=dtype)
    if is_adapter(path) and not new_head:
        model: Any = _reward_adapter(path, args, trust_remote_code)
    else:
        model = _classifier(args, new_head, trust_remote_code, heads)
    tokenizer = load_tokenizer(
        path, revision=args.model_revision, trust_remote_code=trust_remote_code
    )
    refuse_vocabulary(model, path, args.model_revision, tokenizer)
    if path != name:  # the Hub id of an adapter, and not where it was downloaded to
        model.name_or_path = name
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return prepare_for_gradients(model).eval(), tokenizer


def _classifier(
    model_args: ModelConfig,
    new_head: bool,
    trust_remote_code: bool,
    heads: RewardHeads | None = None,
) -> PreTrainedModel:
    from transformers import AutoModelForSequenceClassification

    path = str(model_args.model_name_or_path)
    if is_adapter(path):
        if adapter_task(path) == "SEQ_CLS":
            _refuse_other_heads(path, adapter_heads(path), heads)
            return merge_adapter(_reward_adapter(path, model_args, trust_remote_code), path)
        return _with_new_head(model_args, path, trust_remote_code, heads)
    with load_errors(path, "reward model"):
        heads = _heads_in(path, model_args.model_revision, trust_remote_code, heads)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(heads.names()),
            revision=model_args.model_revision,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **pretrained_options(model_args),
        )
    if new_head and set(info["missing_keys"]) - HEAD and not is_quantized(model_args):
        # A tied checkpoint may store its embeddings under the language model's head alone, which
        # a classifier does not read; the language model itself knows what is tied to what.
        return _with_new_head(model_args, path, trust_remote_code, heads)
    refuse_missing_weights(path, info, allowed=HEAD if new_head else frozenset())
    name_outputs(model.config, heads)
    return model


def _reward_adapter(path: str, model_args: ModelConfig, trust_remote_code: bool) -> PeftModel:
    has_head = any(key.endswith("score.weight") for key in adapter_keys(path))
    if adapter_task(path) != "SEQ_CLS" or not has_head:
        raise UserError(
            f"model_name_or_path={path}: an adapter without a score head is no reward model; train "
            "one from it with `rlhf reward`."
        )
    own: dict[str, Any] = {"heads": adapter_heads(path), "trust_remote_code": trust_remote_code}
    load = partial(_classifier, new_head=True, **own)
    return load_adapter(load_rounded(path, base_args(path, model_args), load), path)


def _with_new_head(
    model_args: ModelConfig, path: str, trusted: bool, heads: RewardHeads | None
) -> PreTrainedModel:
    policy = load_policy(model_args, trust_remote_code=trusted)
    model = classifier_on_trunk(
        policy, path, "reward model", heads or ONE, trust_remote_code=trusted
    )
    model.name_or_path = path
    return model.eval()


def classifier_on_trunk(
    policy: PreTrainedModel,
    path: str,
    kind: str,
    heads: RewardHeads = ONE,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A classifier with a new head and a copy of a language model's trunk.

    Args:
        policy: The language model.
        path: Name for messages.
        kind: What it is to be, for messages.
        heads: Its outputs.
        trust_remote_code: Whether code beside the model may run.
    """
    from transformers import AutoModelForSequenceClassification

    config = with_outputs(policy.config, heads)
    with load_errors(path, kind):
        model = AutoModelForSequenceClassification.from_config(
            config, dtype=policy.dtype, trust_remote_code=trust_remote_code
        )
    model.base_model.load_state_dict(policy.base_model.state_dict())
    return model


def with_outputs(config: PreTrainedConfig, heads: RewardHeads) -> PreTrainedConfig:
    """A copy of a configuration, of a model with the outputs of a reward model."""
    copy = type(config).from_dict(config.to_dict())
    name_outputs(copy, heads)
    copy._name_or_path = config._name_or_path  # where code of its own is looked for
    return copy


def _heads_in(
    path: str, revision: str, trust_remote_code: bool, wanted: RewardHeads | None
) -> RewardHeads:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        path, revision=revision, trust_remote_code=trust_remote_code
    )
    names = config.architectures or []
    if not any("SequenceClassification" in name for name in names):
        return wanted or ONE
    if (heads := heads_of(config)) is None:
        raise UserError(
            f"model_name_or_path={path}: it has {config.num_labels} labels and a reward model has "
            "one; name a model with one label."
        )
    _refuse_other_heads(path, heads, wanted)
    return heads


def _refuse_other_heads(path: str, heads: RewardHeads, wanted: RewardHeads | None) -> None:
    if wanted is not None and wanted != heads:
        raise UserError(
            f"model_name_or_path={path}: it is a reward model with the outputs "
            f"{', '.join(heads.names())}, and this run trains {', '.join(wanted.names())}; begin "
            "with a language model, or take answers about the same aspects and the same ensemble."
        )


def load_adapted_classifier(
    model_args: ModelConfig, heads: RewardHeads = ONE, *, trust_remote_code: bool = False
) -> PeftModel:
    """Load a reward model to be, whose adapter begins as that of a language model or goes on.

    Args:
        model_args: TRL's model keys; the name is that of an adapter's run or folder.
        heads: Its outputs.
        trust_remote_code: Whether code beside a model may run.

    Returns:
        The adapter, trainable, on a classifier with the same base; the score head is new, or that
        of the reward adapter.

    Raises:
        UserError: A lora key contradicts the adapter's shape, or the weights do not fit.
    """
    import peft
    from safetensors.torch import load_file

    path = resolve_model(model_args.model_name_or_path)
    config = peft.PeftConfig.from_pretrained(path)
    _refuse_other_shape(config, model_args)
    if adapter_task(path) == "SEQ_CLS":
        _refuse_other_heads(path, adapter_heads(path), heads)

    def load(args: ModelConfig) -> Any:
        name, dtype = str(args.model_name_or_path), str(args.dtype)
        more = {"heads": heads, "model_args": args, "trust_remote_code": trust_remote_code}
        return load_reward_model(name, dtype, new_head=True, **more)[0]

    with naming_adapter(path):
        model = load_rounded(path, base_args(path, model_args), load)
    if adapter_task(path) == "SEQ_CLS":
        return load_adapter(model, path, trainable=True)
    saved = [*(getattr(config, "modules_to_save", None) or []), "score"]
    changes = {"task_type": "SEQ_CLS", "modules_to_save": saved, "inference_mode": False}
    adapted = peft.get_peft_model(model, replace(config, **changes))
    weights = load_file(Path(path) / WEIGHTS)
    state = peft.get_peft_model_state_dict(adapted)
    if odd := sorted(set(weights) - set(state)):
        raise UserError(
            f"model_name_or_path={path}: a classifier has no place for {odd[0]}; leave use_peft "
            "out, so that the adapter is merged."
        )
    peft.set_peft_model_state_dict(adapted, state | weights)
    return adapted
