"""Models of real shapes with random weights, made in memory, for the GPU benchmark."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT))  # behind a TRL of another release

from recipes.lib.plan.model_shapes import shipped_models  # noqa: E402  the path above comes first

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
PAD, EOS = 0, 1
MARKS = ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>", "user", "assistant")
TEMPLATE = """{% for m in messages %}<|im_start|> {{ m.role }} \
{% if m.role == "assistant" %}{% generation %}{{ m.content }} <|im_end|>{% endgeneration %}\
{% else %}{{ m.content }} <|im_end|> {% endif %}{% endfor %}\
{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"""
BLOCK = 2**24 - 3  # random numbers, then repeated: quicker to make; odd, so that no rows are equal
ENDS: dict[str, Any] = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}


def shape(name: str, tiny: bool) -> Any:
    """Configuration of a shape; tiny: of its class, with next to no weights."""
    sizes = shipped_models()[name]
    return AutoConfig.for_model(**(sizes | (TINY if tiny else {}) | ENDS))


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


def write_weights(config: Any, folder: Path) -> None:
    """Write bf16 weights as one safetensors file, without a copy of them in memory."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    state = random_state(empty, torch.bfloat16)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in state.keys() - tied:
        start, end = end, end + state[name].numel() * 2
        header[name] = {
            "dtype": "BF16",
            "shape": [*state[name].shape],
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    partial = folder / "model.partial"
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header.keys() - {"__metadata__"}:
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            state[name].contiguous().view(torch.uint8).numpy().tofile(file)
    partial.rename(folder / "model.safetensors")


def write_tokenizer(config: Any, folder: Path, eos: str = "<eos>") -> None:
    """Write a tokenizer of whole words and the model's configuration."""
    names = [*MARKS, *(f"w{i}" for i in range(config.vocab_size - len(MARKS)))]
    words = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>")
    backend = Tokenizer(words)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token=eos,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="left",
        chat_template=TEMPLATE,
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
    most = config.vocab_size - len(MARKS)
    words = torch.randint(most, (rows, tokens), generator=generator).tolist()
    return [{"prompt": " ".join(f"w{word}" for word in row)} for row in words]
