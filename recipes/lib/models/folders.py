"""Finding models and their tokenizers, and telling in one sentence what is wrong with a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError, first_line, is_memory

MISMATCH = "ignore_mismatched_sizes"  # what transformers tells to set where shapes differ
ADAPTER_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
RUNS = Path("runs")  # a bare name may be that of a run below it


def resolve_model(name_or_path: str | None) -> str:
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


def is_local(name: str) -> bool:
    """Whether a name of a model is that of a folder here, also of one that is gone, or a Hub id."""
    try:
        return Path(resolve_model(name)).exists()
    except UserError:
        return True


def fetch_adapter(name: str, revision: str = "main") -> str:
    """Folder of an adapter that is named by its Hub id.

    Args:
        name: What `resolve_model` gave.
        revision: Of the adapter.

    Returns:
        The folder that the adapter was downloaded to, without what could run code; the name as it
        is for everything else.
    """
    if Path(name).is_dir():
        return name
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    with load_errors(name, "model"):
        is_none = find_adapter_config_file(name, revision=revision) is None
    if is_none:
        return name
    with load_errors(name, "adapter"):
        return snapshot_download(name, revision=revision, allow_patterns=ADAPTER_FILES)


def refuse_missing_weights(path: str, info: dict[str, Any], allowed: frozenset[str]) -> None:
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
        remedy = "name a model whose files hold every weight"
        if random == ["score.weight"]:
            remedy = "train it as a reward model first (rlhf reward), or name one"
        shown = ", ".join(random[:3]) + (f" and {len(random) - 3} more" if len(random) > 3 else "")
        raise UserError(
            f"model_name_or_path={path}: its files do not hold {shown}, which would come up "
            f"random; {remedy}."
        )


@contextmanager
def load_errors(name: str, kind: str) -> Iterator[None]:
    """Tell a failed load in one sentence, and keep transformers' table of keys off the screen."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_memory(error):
            raise UserError(
                f"model_name_or_path={name}: there is not enough memory to load it; choose "
                "dtype=bfloat16, load_in_4bit with use_peft, or a smaller model."
            ) from error
        # Broken files raise whatever the reader of their format raises, bare Exception among it.
        raise UserError(_no_model(name, kind, error)) from error
    finally:
        logging.set_verbosity(level)


def _no_model(name: str, kind: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"model_name_or_path={name}: its {kind} needs code that lies beside it; read that code "
            "and set trust_remote_code, or name a model of a class that transformers has."
        )
    if MISMATCH in str(error):
        return (
            f"model_name_or_path={name}: weights in its files have other shapes than its "
            "config.json says; use the two that belong together."
        )
    return f"model_name_or_path={name}: no {kind} can be loaded from it ({first_line(error)})."


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


@dataclass(kw_only=True)
class TrustArguments:
    """The key of recipes whose models no trainer of TRL loads; named as in TRL's configurations."""

    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the code that lies beside models and tokenizers; read it first."},
    )
