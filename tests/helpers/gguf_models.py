"""Small random models of the classes that llama.cpp knows, with tokenizers shaped like theirs."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from recipes.lib.publishing.readback import sample_texts

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# As they stand in the tokenizer.json of Llama 3 and of Qwen 2.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
CLASSES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama3": (
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "tie_word_embeddings": True,
        },
    ),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "gemma3": (
        Gemma3TextConfig,
        {
            "num_hidden_layers": 7,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "tie_word_embeddings": True,
        },
    ),
}
TOKENIZERS = {
    "llama": "sentencepiece",
    "llama3": "llama-bpe",
    "qwen2": "qwen2",
    "qwen3": "gpt-2",
    "gemma3": "gemma",
}


def byte_level(kind: str, vocab_size: int = 700) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the pre-tokenizer that a family has, trained on the sample texts."""
    split = pre_tokenizers.Split
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    before = {
        "gpt-2": gpt2,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "llama-bpe": pre_tokenizers.Sequence([split(Regex(LLAMA3), "isolated"), to_bytes]),
        "qwen2": pre_tokenizers.Sequence([split(Regex(QWEN2), "isolated"), to_bytes]),
        "odd": pre_tokenizers.Sequence([split(Regex("[aeiou]+"), "isolated"), to_bytes]),
    }[kind]
    made = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    made.pre_tokenizer = before
    made.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(sample_texts() * 3, trainer)
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if kind == "llama-bpe":
        ends["bos_token"] = "<|endoftext|>"
        made.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **ends)
    start = "{{ bos_token }}" if kind == "llama-bpe" else ""
    fast.chat_template = start + CHATML
    return fast


def sentencepiece(is_gemma: bool = False, vocab_size: int = 900) -> PreTrainedTokenizerFast:
    """A BPE over characters with bytes to fall back on, as what SentencePiece trains is converted.

    Each token has all pairs that make it as merges, those of an earlier token before a later one's.
    """
    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Replace(" ", SPACE)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 260, show_progress=False)
    words.train_from_iterator([" " + text for text in sample_texts()] * 2, trainer)
    learned = [token for token, _ in sorted(words.get_vocab().items(), key=lambda item: item[1])]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] if is_gemma else ["<unk>", "<s>", "</s>"]
    ids = {token: number for number, token in enumerate([*special, *BYTES, *learned])}
    merges = [
        (token[:cut], token[cut:])
        for token in learned
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", SPACE)
    made.normalizer = (
        replace if is_gemma else normalizers.Sequence([normalizers.Prepend(SPACE), replace])
    )
    if is_gemma:
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps + ([] if is_gemma else [decoders.Strip(" ", 1, 0)]))
    bos, eos = ("<bos>", "<eos>") if is_gemma else ("<s>", "</s>")
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
    )
    ends = {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>" if is_gemma else "<unk>", **ends
    )


def tokenizer_like(kind: str) -> PreTrainedTokenizerFast:
    """One of the tokenizers by its name in TOKENIZERS."""
    if kind in ("sentencepiece", "gemma"):
        return sentencepiece(kind == "gemma")
    return byte_level(kind)


def save(folder: Path, name: str, **more: Any) -> str:
    """Write a random model of CLASSES and its tokenizer; give the folder's name."""
    tokenizer = tokenizer_like(TOKENIZERS[name])
    kind, own = CLASSES[name]
    ends = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id")}
    torch.manual_seed(0)
    # Rows without a token, as most models have.
    config = kind(**(SIZES | own | {"vocab_size": len(tokenizer) + 5} | ends | more))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms and biases, which are born as ones and zeros
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
