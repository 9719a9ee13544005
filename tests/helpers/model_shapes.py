"""Shapes of the models that the shipped configurations name, and a Hub cache that holds them."""

import json
from pathlib import Path
from typing import Any

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "rms_norm_eps": 1e-6,
    "dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def sized(base: dict[str, Any], *sizes: int, tied: bool = True) -> dict[str, Any]:
    """A configuration of a family with its sizes."""
    return base | dict(zip(KEYS, sizes, strict=True)) | {"tie_word_embeddings": tied}


SMOLLM3 = sized(LLAMA3, 2048, 11008, 36, 16) | {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_key_value_heads": 4,
    "max_position_embeddings": 65536,
    "pad_token_id": 128004,
    "eos_token_id": 128012,
}
# Hub id: configuration, and the number of weights that its page gives.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen/Qwen3-0.6B-Base": (sized(QWEN3, 1024, 3072, 28, 16), 596_049_920),
    "Qwen/Qwen3-1.7B-Base": (sized(QWEN3, 2048, 6144, 28, 16), 1_720_574_976),
    "Qwen/Qwen3-4B-Base": (sized(QWEN3, 2560, 9728, 36, 32), 4_022_468_096),
    "Qwen/Qwen3-8B-Base": (sized(QWEN3, 4096, 12288, 36, 32, tied=False), 8_190_735_360),
    "meta-llama/Llama-3.2-1B": (sized(LLAMA3, 2048, 8192, 16, 32), 1_235_814_400),
    "meta-llama/Llama-3.1-8B": (sized(LLAMA3, 4096, 14336, 32, 32, tied=False), 8_030_261_248),
    "HuggingFaceTB/SmolLM3-3B-Base": (SMOLLM3, 3_075_098_624),
}
for _name in list(SHAPES):
    if _name.endswith("-Base"):
        SHAPES[_name.removesuffix("-Base")] = SHAPES[_name]


def fill_cache(folder: Path) -> Path:
    """Write a Hub cache with the configurations alone; give its folder."""
    for name, (config, _) in SHAPES.items():
        model = folder / f"models--{name.replace('/', '--')}"
        snapshot = model / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("0")
        (snapshot / "config.json").write_text(json.dumps(config))
    return folder
