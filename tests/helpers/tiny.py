"""Tiny models, tokenizers and trainers for the checklist of PPO: seconds, and no downloads."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer

# Few words, so that a random model says the end token in a good share of completions.
WORDS = "<pad> <eos> <unk> . a b c d e f g h i j k l".split()
PROMPTS = ["a", "b c d e f g h", "d e", "f g h i"]
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "total_episodes": 16,
    "rollout_batch_size": 8,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "per_device_train_batch_size": 2,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "gamma": 1.0,
    "critic": "model",
    "critic_warmup_rollouts": 0,
}


def tokenizer(
    pad: str = "<pad>", words: list[str] = WORDS, start: str | None = None
) -> PreTrainedTokenizerFast:
    """Words split at white space; `start` is put in front of plain text."""
    vocabulary = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if start is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, vocabulary[start])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, eos_token="<eos>", unk_token="<unk>"
    )


def llama(seed: int = 0, kind: type = LlamaForCausalLM, **more: Any) -> Any:
    """A Llama of two layers with weights large enough to have opinions."""
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    return kind(LlamaConfig(**(settings | more)))


def gpt2(seed: int = 0, kind: type = GPT2LMHeadModel, **more: Any) -> Any:
    """A GPT-2 of two layers: absolute positions, dropout by default, tied embeddings."""
    settings = {
        "vocab_size": len(WORDS),
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    return kind(GPT2Config(**(settings | more)))


def every_third(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token % 3 == 0 for token in ids) / 2 for ids in completion_ids]


def nothing(prompts: list[str], **_: Any) -> list[float]:
    return [0.0] * len(prompts)


def trainer(folder: Path, model: Any = None, **more: Any) -> PPOTrainer:
    """A PPOTrainer on a tiny model; further arguments are the trainer's or the configuration's."""
    own = {"peft_config", "callbacks", "quantization_config", "reward_processing_classes"}
    own |= {"cost_funcs"}
    arguments: dict[str, Any] = {key: more.pop(key) for key in own & more.keys()}
    reward = more.pop("reward", every_third)
    words = more.pop("tokenizer", None) or tokenizer()
    prompts = more.pop("prompts", PROMPTS)
    return PPOTrainer(
        model if model is not None else llama(),
        reward,
        PPOConfig(output_dir=str(folder), **(SETTINGS | more)),
        Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=words,
        **arguments,
    )


def last(mask_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of the last token of each row."""
    return torch.arange(len(mask_BC)), mask_BC.sum(1).long() - 1


def shake(module: Any, scale: float = 0.1, seed: int = 1) -> None:
    """Move every trainable weight a little, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(scale * noise.to(parameter.dtype))


def state(module: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def log_probs(model: Any, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities (T, V) behind each token of an unpadded sequence, in float64."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return (logits.double() / temperature).log_softmax(-1)


def sequences(rollout: Any) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each episode of a rollout, without padding."""
    return [
        (
            rollout.prompt_ids[row][rollout.prompt_mask[row].bool()].tolist(),
            rollout.completion_ids[row][rollout.completion_mask[row].bool()].tolist(),
        )
        for row in range(len(rollout.prompt_ids))
    ]
