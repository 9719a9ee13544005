"""The model, prompts and reward model of ppo_vs_trl, the same for both trainers."""

import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

EPISODES = 32
PROMPT_TOKENS, COMPLETION_TOKENS = 16, 48
ITERATIONS = 3  # the first one is warm-up and is not counted
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
COMMON: dict[str, Any] = {
    "total_episodes": EPISODES * ITERATIONS,
    "num_ppo_epochs": 4,
    "num_mini_batches": 4,
    "learning_rate": 1e-4,
    "kl_coef": 0.05,
    "temperature": 1.0,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 1,
}
VOCABULARY = 4096


def write_models(folder: Path) -> None:
    """Write policy/ and reward/, 7 million random weights each, with a tokenizer of whole words."""
    names = ["<pad>", "<eos>", *(f"w{i}" for i in range(VOCABULARY - 2))]
    words = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>")
    backend = Tokenizer(words)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    Qwen3ForCausalLM(Qwen3Config(**sizes)).save_pretrained(folder / "policy")
    classifier = Qwen3ForSequenceClassification(Qwen3Config(**sizes, num_labels=1))
    classifier.save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)


def prompts() -> list[list[int]]:
    """Token ids of the prompts."""
    generator = torch.Generator().manual_seed(1)
    shape = (EPISODES, PROMPT_TOKENS)
    rows: list[list[int]] = torch.randint(2, VOCABULARY, shape, generator=generator).tolist()
    return rows


class Laps:
    """Seconds between the beginnings of phases, from the second iteration on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.wholes: list[float] = []  # of each iteration
        self.phase = ""
        self.iteration = 0
        self.since = 0.0

    def begin(self, phase: str) -> None:
        """Note that a phase begins, and with it the one before ends; sampling is the first."""
        now = time.perf_counter()
        if self.phase and self.iteration > 1:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
            if len(self.wholes) < self.iteration - 1:
                self.wholes.append(0.0)
            self.wholes[-1] += now - self.since
        self.iteration += phase == "sampling"
        self.phase, self.since = phase, now

    def per_iteration(self) -> dict[str, float]:
        """Mean seconds of each phase."""
        return {name: s / (ITERATIONS - 1) for name, s in self.seconds.items()}
