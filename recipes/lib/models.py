"""Loading models and tokenizers: a run, a folder, an adapter on its base, or a Hub id.

What is loaded is what was trained: weights that would come up random are an error, not a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import ModelConfig

RUNS = Path("runs")  # a bare name may be that of a run below it


def resolve_model(name_or_path: str) -> str:
    """Find the folder that a name stands for.

    Args:
        name_or_path: A run folder or its name below runs/, a model or adapter folder, or a Hub id.

    Returns:
        The folder (for a run its final/), or the Hub id as it was given.

    Raises:
        UserError: It is no model folder, an unfinished run, or a path where nothing lies.
    """
    if not name_or_path:
        raise UserError("model_name_or_path is missing: name a run, a model folder or a Hub id.")
    for path in (Path(name_or_path), RUNS / name_or_path):
        if path.is_dir():
            return str(_model_folder(path))
    looks_local = name_or_path.startswith((".", "~", "/")) or name_or_path.count("/") > 1
    if looks_local or name_or_path.startswith("runs/"):
        raise UserError(
            f"model_name_or_path={name_or_path}: there is no such folder; check the path, or train "
            "the run first."
        )
    return name_or_path


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def load_tokenizer(
    name_or_path: str, *, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and see that it can pad.

    A missing pad token becomes the EOS token; no id changes and nothing is added. The padding side
    stays as it is: this project pads by attention mask where it batches by itself.

    Args:
        name_or_path: As in `resolve_model`; an adapter folder without one has its base's.
        revision: Of a Hub model.
        trust_remote_code: Whether code from the Hub may run.

    Returns:
        The tokenizer.

    Raises:
        UserError: There is no tokenizer, or it has neither a pad nor an EOS token.
    """
    from transformers import AutoTokenizer

    path = resolve_model(name_or_path)
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        return load_tokenizer(adapter_base(path), trust_remote_code=trust_remote_code)
    with reading(name_or_path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"model_name_or_path={name_or_path}: its tokenizer has neither a pad nor an EOS "
                "token; add an EOS token to its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
    from trl import get_quantization_config

    path = resolve_model(model_args.model_name_or_path or "")
    quantization = get_quantization_config(model_args)
    if is_adapter(path):
        if quantization is not None:
            raise UserError(
                f"model_name_or_path={path}: an adapter cannot be merged into a quantized base "
                "without changing it; leave load_in_4bit and load_in_8bit out."
            )
        return _merged(path, model_args)
    options: dict[str, Any] = {"attn_implementation": model_args.attn_implementation}
    if quantization is not None:
        options |= {"quantization_config": quantization}
    with reading(path, "causal language model"):
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            revision=model_args.model_revision,
            dtype=model_args.dtype,
            output_loading_info=True,
            **{key: value for key, value in options.items() if value is not None},
        )
    refuse_random(path, info, allowed=frozenset())
    return model


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


def adapter_base(path: str | Path) -> str:
    """Name of the model that an adapter folder was trained on."""
    config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{path}: adapter_config.json names no base model; put its path or Hub id under "
            "base_model_name_or_path."
        )
    return str(base)


def _merged(path: str, model_args: ModelConfig) -> PreTrainedModel:
    from peft import PeftModel

    base = load_policy(
        replace(model_args, model_name_or_path=adapter_base(path), model_revision="main")
    )
    model = PeftModel.from_pretrained(base, path).merge_and_unload()
    model.name_or_path = path
    return model


def refuse_random(path: str, info: dict[str, Any], allowed: frozenset[str]) -> None:
    """Refuse a model whose files lack weights, which transformers would fill with noise.

    Args:
        path: Name for the message.
        info: What from_pretrained gave as loading info.
        allowed: Weights that may be new.

    Raises:
        UserError: Other weights are new.
    """
    random = sorted(set(info["missing_keys"]) - allowed)
    random += sorted(str(key) for key in info["mismatched_keys"])
    if random:
        shown = ", ".join(random[:3]) + (f" and {len(random) - 3} more" if len(random) > 3 else "")
        raise UserError(
            f"model_name_or_path={path}: its files do not hold {shown}, which would come up random; "
            "name a model whose files hold every weight."
        )


@contextmanager
def reading(name: str, kind: str) -> Iterator[None]:
    """Tell a failed load in one sentence, and keep transformers' table of keys off the screen."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model_name_or_path={name}: no {kind} can be loaded from it ({reason})."
        ) from error
    finally:
        logging.set_verbosity(level)


def _model_folder(path: Path) -> Path:
    if (path / "final").is_dir():
        return path / "final"
    if (path / "config.json").is_file() or is_adapter(path):
        return path
    if (path / "config.yaml").is_file():
        raise UserError(
            f"model_name_or_path={path}: the run has no final/ yet; finish it with --resume first."
        )
    raise UserError(
        f"model_name_or_path={path}: the folder holds neither config.json, adapter_config.json nor "
        "final/; name a model folder or a run."
    )
