"""Whether a tokenizer and a model speak of the same tokens, and whether the model ever saw them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.models.folders import fetch_adapter, is_adapter, load_errors, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Of the median length of the embeddings: what no training has moved is far below.
MIN_RELATIVE_NORM = 1e-2


def refuse_vocabulary(
    model: Any,
    path: str,
    revision: str = "main",
    tokenizer: Any = None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding of.

    Args:
        model: A model, loaded.
        path: Where it was loaded from.
        revision: Of a Hub model.
        tokenizer: Its tokenizer; None for the one that lies beside it, if one does.
        trust_remote_code: Whether code beside the model may run.

    Raises:
        UserError: The tokenizer has more tokens than the model.
    """
    if tokenizer is None:
        if not _has_tokenizer(path):
            return
        tokenizer = load_tokenizer(path, revision=revision, trust_remote_code=trust_remote_code)
    # Sharded over processes, the embeddings here are empty.
    rows = _embeddings(model).shape[0] or model.config.get_text_config().vocab_size
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise UserError(
            f"model_name_or_path={path}: its tokenizer has {highest + 1} tokens (the last is "
            f"{token!r}) and the model {rows}; use the tokenizer that the model was trained with, "
            "or resize the model's embeddings."
        )


def untrained_tokens(model: Any, tokenizer: Any, ids: set[int]) -> list[str]:
    """Tokens whose embeddings were left as they were when the vocabulary was made.

    Such a row is nearly zero or equal to that of another token.

    Args:
        model: A model, loaded and not quantized in its embeddings.
        tokenizer: Its tokenizer.
        ids: The ids to look at.

    Returns:
        The tokens, in the order of their ids.
    """
    import torch

    weight = _embeddings(model)
    if weight.is_meta or not weight.numel():  # it is on another process
        return []
    rows = weight.detach().float()
    lengths = rows.norm(dim=1)
    few = torch.tensor(sorted(ids))
    faint = lengths[few] < MIN_RELATIVE_NORM * lengths.median()
    twins = torch.stack([(rows == rows[i]).all(1).sum() > 1 for i in few])
    named = [int(i) for i, is_odd in zip(few, faint | twins, strict=True) if is_odd]
    return list(tokenizer.convert_ids_to_tokens(named))


def _embeddings(model: Any) -> Any:
    return model.get_input_embeddings().weight


def _has_tokenizer(path: str) -> bool:
    folder = Path(path)
    # Of a Hub id or a bare adapter there is no cheap way to tell; the recipe loads it anyway.
    return (folder / "tokenizer_config.json").is_file() or (
        folder.is_dir() and is_adapter(path) and (folder / "tokenizer.json").is_file()
    )


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
        UserError: There is no tokenizer, it has neither a pad nor an EOS token, or its files name
            a place to write to.
    """
    from transformers import AutoTokenizer

    path = fetch_adapter(resolve_model(name_or_path), revision)
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        from recipes.lib.models.adapter_folders import adapter_base, naming_adapter

        base, revision = adapter_base(path)
        with naming_adapter(path):
            return load_tokenizer(base, revision=revision, trust_remote_code=trust_remote_code)
    with load_errors(name_or_path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    _refuse_names(tokenizer, name_or_path)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"model_name_or_path={name_or_path}: its tokenizer has neither a pad nor an EOS "
                "token; add an EOS token to its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _refuse_names(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    # Each named template is saved as a file of that name, at the end of a training.
    templates = tokenizer.chat_template
    for key in templates if isinstance(templates, dict) else ():
        if Path(key).name != key:
            raise UserError(
                f"model_name_or_path={name}: a chat template of its tokenizer is named {key!r}, "
                "which is a path; rename it in tokenizer_config.json."
            )
