"""Models of real shapes with random weights, made in memory, for the GPU benchmark."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
PAD, EOS = 0, 1
BLOCK = 2**24  # random numbers, which are then repeated: quicker to make
ENDS: dict[str, Any] = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
SHAPES: dict[str, tuple[type, dict[str, Any]]] = {
    "Llama-3.1-8B": (
        LlamaConfig,
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen3-0.6B": (
        Qwen3Config,
        {
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-1.7B": (
        Qwen3Config,
        {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
}


def shape(name: str, tiny: bool) -> Any:
    """Configuration of a shape; tiny: of its class, with next to no weights."""
    kind, sizes = SHAPES[name]
    if tiny:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        sizes = sizes | TINY | heads
    return kind(**sizes, **ENDS)


def random_state(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A random value for each weight: pieces of one block, so that it needs little memory."""
    state = model.state_dict()
    most = max(value.numel() for value in state.values())
    generator = torch.Generator().manual_seed(0)
    block = (torch.randn(min(most, BLOCK), generator=generator) * 0.02).to(dtype)
    block = block.repeat(-(-most // BLOCK))
    ones = torch.ones(1, dtype=dtype)
    return {
        name: ones.expand(value.shape)
        if value.dim() == 1
        else block[: value.numel()].view(value.shape)
        for name, value in state.items()
    }


def make(
    config: Any, folder: Path, device: str, nf4: bool = False, classifier: bool = False
) -> Any:
    """A bf16 model with random weights on a device, named after its folder.

    Args:
        config: Its configuration.
        folder: Holds the tokenizer and the configuration; no weights are written.
        device: `cuda` or `cpu`.
        nf4: Whether weights are quantized, twice.
        classifier: Whether it is a reward model and not a language model.

    Returns:
        The model.
    """
    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    if classifier:
        config = type(config)(**(config.to_dict() | {"num_labels": 1}))
    with torch.device("meta"):
        empty = auto.from_config(config)
    state = random_state(empty, torch.bfloat16)
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    more = {"quantization_config": quantized} if nf4 else {}
    model = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.bfloat16,
        device_map={"": device},
        **more,
    )
    for parameter in model.parameters():
        if parameter.is_floating_point():  # each its own memory, also where loading did not copy
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    model.name_or_path = model.config._name_or_path = str(folder)
    return model


def write_tokenizer(config: Any, folder: Path) -> None:
    """Write a tokenizer of whole words and the model's configuration."""
    names = ["<pad>", "<eos>", *(f"w{i}" for i in range(config.vocab_size - 2))]
    words = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>")
    backend = Tokenizer(words)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_reward_adapter(config: Any, base: Path, folder: Path) -> None:
    """Write a reward adapter on a base whose weights exist nowhere on disk."""
    labelled = type(config)(**(config.to_dict() | {"num_labels": 1}))
    lora = LoraConfig(**LORA, task_type="SEQ_CLS", modules_to_save=["score"])
    with torch.device("meta"):
        adapted = get_peft_model(AutoModelForSequenceClassification.from_config(labelled), lora)
        shapes = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    torch.manual_seed(0)
    state = {name: torch.randn(value.shape) * 0.01 for name, value in shapes.items()}
    folder.mkdir(parents=True)
    lora = adapted.peft_config["default"]
    lora.base_model_name_or_path, lora.inference_mode = str(base), True
    lora.save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors")
    write_tokenizer(config, folder)
    (folder / "config.json").unlink()


def texts(config: Any, rows: int, tokens: int) -> list[dict[str, str]]:
    """Prompts of random words, as rows of a data set."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, config.vocab_size, (rows, tokens), generator=generator).tolist()
    return [{"prompt": " ".join(f"w{token - 2}" for token in row)} for row in ids]
