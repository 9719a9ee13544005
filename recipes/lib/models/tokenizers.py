"""Whether a tokenizer and a model speak of the same tokens, and whether the model ever saw them."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.models.folders import fetch_adapter, is_adapter, load_errors, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Of the median length of the embeddings: what no training has moved is far below.
MIN_RELATIVE_NORM = 1e-2
ROWS_AT_ONCE = 8192
MOST_SECONDS = 5  # that a chat template may take for one word
MOST_BYTES = 2**28


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
    # In pieces: a 32-bit copy of all rows can be larger than anything in training.
    pieces = weight.detach().split(ROWS_AT_ONCE)
    lengths = torch.cat([piece.float().norm(dim=1) for piece in pieces])
    least = MIN_RELATIVE_NORM * lengths.median()

    def num_like(row: Any) -> int:
        return sum(int((piece == row).all(1).sum()) for piece in pieces)

    few = sorted(ids)
    named = [i for i in few if bool(lengths[i] < least) or num_like(weight[i]) > 1]
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
    name_or_path: str,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    keeps_end: bool = False,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and see that it can pad.

    A missing pad token becomes the EOS token; no id changes and nothing is added, and the padding
    side stays. One that ends every text with EOS no longer does, here and where it is saved: a
    prompt does not end there, and trainers put one behind every row.

    Args:
        name_or_path: As in `resolve_model`; an adapter folder without one has its base's.
        revision: Of a Hub model.
        trust_remote_code: Whether code from the Hub may run.
        keeps_end: Whether one that ends texts with EOS goes on to, as encoders are used to.

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
    if not keeps_end:
        _leave_end_to_rows(tokenizer)
    _refuse_templates(tokenizer, name_or_path)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"model_name_or_path={name_or_path}: its tokenizer has neither a pad nor an EOS "
                "token; add an EOS token to its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _refuse_templates(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    # Each named template is saved as a file of that name, at the end of a training. And a template
    # is a program of somebody's; what it says of the words that it is tried on does not matter.
    found = tokenizer.chat_template
    named = found if isinstance(found, dict) else {"": found} if found else {}
    for key, template in named.items():
        if Path(key).name != key:
            raise UserError(
                f"model_name_or_path={name}: a chat template of its tokenizer is named {key!r}, "
                "which is a path; rename it in tokenizer_config.json."
            )
        _try_template(tokenizer, template, name)


def _try_template(tokenizer: PreTrainedTokenizerBase, template: str, name: str) -> None:
    word = [{"role": "user", "content": "a"}]
    try:
        with limited(MOST_SECONDS, MOST_BYTES):
            tokenizer.apply_chat_template(word, chat_template=template, tokenize=False)
    except (TimeoutError, MemoryError) as error:
        raise UserError(
            f"model_name_or_path={name}: its chat template takes more than {MOST_SECONDS} s or "
            f"{MOST_BYTES >> 20} MiB for one word; give it another one."
        ) from error
    except Exception:  # it wants other words, and says so where it gets the data's
        return


@contextmanager
def limited(seconds: int, num_bytes: int) -> Iterator[None]:
    """A section that may take so long, and so much more memory; in the main thread on Linux.

    Raises:
        TimeoutError: It takes longer. Where memory ends, Python raises MemoryError.
    """
    statm = Path("/proc/self/statm")
    if threading.current_thread() is not threading.main_thread() or not statm.is_file():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError

    handler, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    most = min(limit for limit in (used + num_bytes, *limits) if limit != resource.RLIM_INFINITY)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def _leave_end_to_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, bos, eos = tokenizer("a")["input_ids"], tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(ids) > 1 and ids[-1] == eos:
        tokenizer.add_bos_token = bos is not None and ids[0] == bos  # both are set anew
        tokenizer.add_eos_token = False


def without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Text without a written BOS token in front, where the tokenizer puts one there itself."""
    bos = tokenizer.bos_token
    if not bos or not text.startswith(bos):
        return text
    twice = list(tokenizer(text)["input_ids"][:2]) == [tokenizer.bos_token_id] * 2
    return text.removeprefix(bos) if twice else text


def is_lost(tokenizer: PreTrainedTokenizerBase, character: str) -> bool:
    """Whether a tokenizer leaves nothing of a character, or its token for what is unknown.

    Args:
        tokenizer: The tokenizer.
        character: A character; white space is left aside.

    Returns:
        True if a model would not see it; never where words are the units, and not characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if character.isspace() or type(getattr(backend, "model", None)).__name__ == "WordLevel":
        return False
    ids = tokenizer(character, add_special_tokens=False)["input_ids"]
    kept = [token for token in ids if token != tokenizer.unk_token_id]
    return not tokenizer.decode(kept).strip()
