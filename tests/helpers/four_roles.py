"""A base, an SFT adapter and a reward adapter on it, and trainers that put all on one backbone."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import ModelConfig

from recipes.lib.models.policies import load_adapted_policy
from tests.helpers import tiny


def lora(**more: Any) -> LoraConfig:
    """LoRA of rank 4 on every layer."""
    return LoraConfig(**({"r": 4, "target_modules": "all-linear"} | more))


def write_folders(folder: Path, **sizes: Any) -> Path:
    """Write base/, sft/ and reward/, each with its tokenizer; both adapters move what is said."""
    tiny.llama(**sizes).save_pretrained(folder / "base")
    sft = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), lora())
    tiny.shake(sft, 0.3)
    sft.save_pretrained(folder / "sft")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    reward = get_peft_model(classifier, lora(task_type="SEQ_CLS", modules_to_save=["score"]))
    tiny.shake(reward, 0.3, seed=2)
    reward.save_pretrained(folder / "reward")
    for name in ("base", "sft", "reward"):
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


def trainer(folders: Path, out: Path, loading: dict[str, Any] | None = None, **more: Any) -> Any:
    """A trainer with policy, reference, value and reward on one base."""
    model = load_adapted_policy(
        ModelConfig(model_name_or_path=str(folders / "sft"), **(loading or {}))
    )
    settings = {
        "critic": "adapter",
        "critic_model_name_or_path": str(folders / "reward"),
        "reward": str(folders / "reward"),
    }
    return tiny.trainer(out, model, **(settings | more))
