"""Folders with a mistake in them: each function spoils a place that holds a good `model`."""

import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import ModelConfig

from recipes.lib.models.policies import load_policy, lora_config
from tests.helpers.tiny_models import save_model

LORA = ModelConfig(use_peft=True, lora_target_modules=["q_proj", "v_proj"], lora_r=2)


def adapter(folder: Path, name: str, **shape: Any) -> None:
    """An adapter on the model, and then another model in the model's place."""
    from peft import get_peft_model

    model = load_policy(ModelConfig(model_name_or_path="model"))
    get_peft_model(model, lora_config(LORA, "CAUSAL_LM")).save_pretrained(folder / "adapter")
    save_model(folder / "model", tokenizer(folder), name, **shape)


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder / "model")


def of_another_width(folder: Path) -> None:
    adapter(folder, "llama", hidden_size=32)


def of_another_depth(folder: Path) -> None:
    adapter(folder, "llama", num_hidden_layers=1)


def of_another_class(folder: Path) -> None:
    adapter(folder, "gpt2")


def by_a_mixture(folder: Path) -> None:
    adapter(folder, "qwen3_moe")


def without_its_base(folder: Path) -> None:
    adapter(folder, "llama")
    (folder / "model").rename(folder / "elsewhere")


def on_itself(folder: Path) -> None:
    adapter(folder, "llama")
    change(folder / "adapter" / "adapter_config.json", base_model_name_or_path="adapter")


def with_two_labels(folder: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=2)
    classifier.save_pretrained(folder / "two")
    tokenizer(folder).save_pretrained(folder / "two")


def with_more_tokens(folder: Path) -> None:
    words = tokenizer(folder)
    words.add_tokens(["zebra", "yak"])
    words.save_pretrained(folder / "model")


def with_a_wider_head(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.resize_token_embeddings(80)
    model.save_pretrained(folder / "wide")
    tokenizer(folder).save_pretrained(folder / "wide")
    change(folder / "wide" / "config.json", vocab_size=61)


def with_weights_cut_short(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def with_a_broken_tokenizer(folder: Path) -> None:
    (folder / "model" / "tokenizer.json").write_text('{"version": "1.0", ')


def with_a_broken_configuration(folder: Path) -> None:
    (folder / "model" / "config.json").write_text("{")


def with_a_broken_adapter(folder: Path) -> None:
    adapter(folder, "llama")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"short")


def with_a_long_prompt(folder: Path) -> None:
    rows = [{"prompt": "the cat"}, {"prompt": "the cat " * 5}] * 2
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_a_run(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text("seed: 1\n")


def with_other_files(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "letters.txt").write_text("mine")


def with_a_file_in_its_place(folder: Path) -> None:
    (folder / "run").write_text("mine")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def nothing(folder: Path) -> None:
    """The plain model is mistake enough."""
