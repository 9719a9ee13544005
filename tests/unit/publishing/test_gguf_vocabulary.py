"""Which of llama.cpp's tokenizers a tokenizer is, and which it is not."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from recipes.lib.errors import UserError
from recipes.lib.publishing.gguf_vocabulary import agreement, vocabulary_keys
from recipes.lib.publishing.readback import sample_texts
from tests.helpers.gguf_models import byte_level, sentencepiece


def test_the_sample_is_two_hundred_texts_in_ten_scripts() -> None:
    texts = sample_texts()
    assert len(set(texts)) == len(texts) >= 200
    blocks = {
        "Latin": "az",
        "Greek": "\u03b1\u03c9",
        "Cyrillic": "\u0430\u044f",
        "Hebrew": "\u05d0\u05ea",
        "Arabic": "\u0627\u064a",
        "Devanagari": "\u0905\u0939",
        "Thai": "\u0e01\u0e2e",
        "Hiragana": "\u3042\u3093",
        "Hangul": "\uac00\ud7a3",
        "Han": "\u4e00\u9fff",
        "emoji": "\U0001f300\U0001f9ff",
    }
    for name, ends in blocks.items():
        assert sum(any(ends[0] <= c <= ends[1] for c in text) for text in texts) >= 3, name
    assert sum(not text.strip() for text in texts) >= 5


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_byte_level_tokenizer_is_known_by_how_it_splits(kind: str) -> None:
    tokenizer = byte_level(kind)
    keys = vocabulary_keys(tokenizer, len(tokenizer), "some")
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == kind
    merges = keys["tokenizer.ggml.merges"]
    assert len(merges) > 100
    assert all(len(line.split(" ")) == 2 for line in merges)


def test_few_words_do_not_hide_how_text_is_split() -> None:
    """With bytes alone every split gives the same tokens."""
    for kind in ("gpt-2", "qwen2"):
        tokenizer = byte_level(kind, vocab_size=259)
        keys = vocabulary_keys(tokenizer, len(tokenizer), "some")
        assert keys["tokenizer.ggml.pre"] == kind


def test_another_expression_is_refused() -> None:
    with pytest.raises(UserError, match=r"run=some: llama\.cpp has no tokenizer"):
        vocabulary_keys(byte_level("odd"), 800, "some")


@pytest.mark.parametrize("is_gemma", [False, True])
def test_scores_follow_the_merges(is_gemma: bool) -> None:
    tokenizer = sentencepiece(is_gemma)
    keys = vocabulary_keys(tokenizer, len(tokenizer), "some")
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is not is_gemma
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    longer = [number for number, token in enumerate(tokens) if number > 260 and len(token) > 1]
    assert [scores[i] for i in longer] == sorted((scores[i] for i in longer), reverse=True)


def test_merges_that_sentencepiece_would_not_have_are_refused() -> None:
    """SentencePiece joins whatever makes a token; these merges go from left to right alone."""
    tokenizer = sentencepiece()
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = whole["model"]["merges"]
    whole["model"]["merges"] = [pair for pair in merges if len(pair[1]) == 1]
    assert 40 < len(whole["model"]["merges"]) < len(merges)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(whole))
    with pytest.raises(UserError, match="no tokenizer that splits"):
        vocabulary_keys(tokenizer, len(tokenizer), "some")


def test_a_token_that_eats_spaces_is_refused() -> None:
    tokenizer = byte_level("gpt-2")
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)], special_tokens=True)
    with pytest.raises(UserError, match="no tokenizer that splits"):
        vocabulary_keys(tokenizer, len(tokenizer), "some")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("merges", lambda merges: merges[:-300]),
        ("pre", lambda pre: "qwen2"),
        ("token_type", lambda kinds: [1] * len(kinds)),
        ("tokens", lambda tokens: [*tokens[:300], tokens[301], tokens[300], *tokens[302:]]),
    ],
)
def test_the_share_tells_another_vocabulary(key: str, change: Any) -> None:
    tokenizer = byte_level("gpt-2")
    keys = vocabulary_keys(tokenizer, len(tokenizer), "some")
    assert agreement(tokenizer, keys) == 1
    key = f"tokenizer.ggml.{key}"
    assert agreement(tokenizer, keys | {key: change(keys[key])}) < 1
