"""A tokenizer in the words of llama.cpp, which splits text with code of its own.

Which of its tokenizers does what the model's does is found by trying: each is built here by its
rules from the keys that a file would have, and has to split the sample texts alike. What llama.cpp
does not do is normalise: text that is not NFC is split otherwise than by Qwen's tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.publishing.readback import sample_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEY = "tokenizer.ggml."
SPACE = "\u2581"  # what SentencePiece writes for a space
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens in GGUF

# What llama.cpp splits text by before it merges, by its names, and whether a piece that is a token
# is taken as it is.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BY_THREE = _WORDS + r"\p{N}{1,3}" + _REST
PRE_TOKENIZERS = {
    "gpt-2": ([_GPT2], False),
    "smollm": ([r"\p{N}", _GPT2], False),
    "llama-bpe": ([_BY_THREE], True),
    "smaug-bpe": ([_BY_THREE], False),
    "qwen2": ([_WORDS + r"\p{N}" + _REST], False),
}


def vocabulary_keys(tokenizer: Any, num_rows: int, name: str) -> dict[str, Any]:
    """The keys of a GGUF file that are its tokenizer.

    Args:
        tokenizer: The model's tokenizer.
        num_rows: Of the model's embeddings; those without a token are filled up.
        name: Of the run, for the message.

    Returns:
        Tokens, their kinds, merges or scores, and how text is split.

    Raises:
        UserError: llama.cpp has no tokenizer that does the same.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    for keys in _candidates(tokenizer, model, num_rows) if model.get("type") == "BPE" else ():
        if agreement(tokenizer, keys) == 1:
            return keys
    raise UserError(
        f"run={name}: llama.cpp has no tokenizer that splits text as this one does; train with one "
        "of a Llama, Qwen or Gemma model, or choose to=nf4 or to=int8."
    )


def _candidates(tokenizer: Any, model: dict[str, Any], num_rows: int) -> Iterator[dict[str, Any]]:
    merges = [one.split(" ") if isinstance(one, str) else one for one in model["merges"]]
    is_sentencepiece = set(BYTES) <= model["vocab"].keys()
    keys = _tokens(tokenizer, num_rows, is_sentencepiece)
    if not is_sentencepiece:
        for pre in PRE_TOKENIZERS:
            lines = [" ".join(pair) for pair in merges]
            yield keys | {f"{KEY}model": "gpt2", f"{KEY}pre": pre, f"{KEY}merges": lines}
        return
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    # SentencePiece merges to the token of the highest score; what no merge makes comes last.
    keys[f"{KEY}scores"] = [-float(ranks.get(t, len(merges))) for t in keys[f"{KEY}tokens"]]
    for is_prefixed in (True, False):
        yield keys | {f"{KEY}model": "llama", f"{KEY}add_space_prefix": is_prefixed}


def _tokens(tokenizer: Any, num_rows: int, is_sentencepiece: bool) -> dict[str, Any]:
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder

    def kind(number: int) -> int:
        token = names.get(number)
        if token is None:
            return UNUSED
        if is_sentencepiece and (token == tokenizer.unk_token or token in BYTES):
            return UNKNOWN if token == tokenizer.unk_token else BYTE
        if number not in added or (is_sentencepiece and SPACE in token):
            return NORMAL  # it is written with spaces where it comes out
        return CONTROL if added[number].special else USER_DEFINED

    ends = {
        "bos": tokenizer.bos_token_id,
        # Without one, llama.cpp would take the eleventh token for it.
        "eos": tokenizer.pad_token_id if tokenizer.eos_token is None else tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    numbers = {f"{KEY}{end}_token_id": number for end, number in ends.items() if number is not None}
    return numbers | {
        f"{KEY}tokens": [names.get(number, f"[PAD{number}]") for number in range(num_rows)],
        f"{KEY}token_type": [kind(number) for number in range(num_rows)],
    }


def agreement(tokenizer: Any, keys: dict[str, Any]) -> float:
    """Share of the sample texts that llama.cpp would split as a tokenizer does.

    Args:
        tokenizer: The model's tokenizer.
        keys: Of a GGUF file.

    Returns:
        1 where all of them agree, texts with special tokens among them.
    """
    own, other = tokenizer.backend_tokenizer.pre_tokenizer, as_llama_cpp(keys)
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()][:32]
    texts = sample_texts() + [f"a {token} b{token}{token}c" for token in special]

    def is_same(text: str) -> bool:
        # Pieces too: where few words are known, tokens of differing pieces may agree by chance.
        cut = other.pre_tokenizer
        if cut and (not own or own.pre_tokenize_str(text) != cut.pre_tokenize_str(text)):
            return False
        ids = other.encode(text, add_special_tokens=False).ids
        return bool(ids == tokenizer(text, add_special_tokens=False)["input_ids"])

    return sum(map(is_same, texts)) / len(texts)


def as_llama_cpp(keys: dict[str, Any]) -> Tokenizer:
    """A tokenizer that does what llama.cpp does with the keys of a file."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokens, kinds = keys[f"{KEY}tokens"], keys[f"{KEY}token_type"]
    ids = {token: number for number, token in enumerate(tokens)}
    if keys[f"{KEY}model"] == "gpt2":
        expressions, is_whole = PRE_TOKENIZERS[keys[f"{KEY}pre"]]
        merges = [tuple(line.split(" ")) for line in keys[f"{KEY}merges"]]
        made = Tokenizer(models.BPE(ids, merges, ignore_merges=is_whole))
        splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in expressions]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    else:
        by_score = sorted(ids, key=lambda token: -keys[f"{KEY}scores"][ids[token]])
        pairs = ((token[:i], token[i:]) for token in by_score for i in range(1, len(token)))
        merges = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        made = Tokenizer(models.BPE(ids, merges, byte_fallback=True))
        prefix = [normalizers.Prepend(SPACE)] if keys[f"{KEY}add_space_prefix"] else []
        made.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    special = {UNKNOWN, CONTROL, USER_DEFINED}
    alone = [tokens[number] for number, kind in enumerate(kinds) if kind in special]
    made.add_tokens([AddedToken(token, normalized=False) for token in alone])
    return made
