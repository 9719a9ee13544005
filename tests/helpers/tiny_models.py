"""Tiny random models of the classes that people bring, and a folder with one and its tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3MoeConfig,
)

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
GROUPED = SIZES | {"num_key_value_heads": 1}
WIDE = GROUPED | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2_SIZES = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
CLASSES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, GROUPED),
    "mistral": (MistralConfig, GROUPED),
    "qwen2": (Qwen2Config, GROUPED),
    "qwen3": (Qwen3Config, WIDE),
    "gemma3": (Gemma3TextConfig, WIDE | {"sliding_window": 8}),
    "gpt2": (GPT2Config, GPT2_SIZES),
    "gpt_neox": (GPTNeoXConfig, SIZES),
    "phi": (PhiConfig, SIZES),
    "qwen3_moe": (Qwen3MoeConfig, WIDE | EXPERTS),
    "mixtral": (MixtralConfig, GROUPED | {"num_local_experts": 4}),
}


def save_model(
    path: Path, tokenizer: PreTrainedTokenizerFast, name: str = "llama", **more: Any
) -> str:
    """Write a random model of a class and its tokenizer; give the folder's name."""
    kind, sizes = CLASSES[name]
    if name == "qwen2":  # whose folders are read with its own class, which makes words of bytes
        tokenizer = of_bytes(tokenizer)
    torch.manual_seed(0)
    config = kind(**({"vocab_size": len(tokenizer)} | sizes | more))
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def of_bytes(like: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer of Qwen2's class with one token a byte, the special tokens and the template."""
    special = ["<pad>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    ends = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[], **ends)
    made.chat_template = like.chat_template
    return made


def with_bos(tokenizer: PreTrainedTokenizerFast, token: str) -> PreTrainedTokenizerFast:
    """The tokenizer with a BOS token that it puts before plain text."""
    number = tokenizer.convert_tokens_to_ids(token)
    tokenizer.bos_token = token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, number)]
    )
    return tokenizer
