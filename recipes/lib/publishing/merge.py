"""Merging a run's adapters into a plain model, and refusing one that says something else."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl import ModelConfig

from recipes.lib.errors import UserError
from recipes.lib.generation.completions import fits
from recipes.lib.models.adapter_folders import (
    BASE_QUANTIZATION,
    adapter_task,
    base_args,
    load_adapter,
)
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.folders import fetch_adapter, is_adapter, resolve_model
from recipes.lib.models.merging import merge_adapter
from recipes.lib.models.policies import evaluation_device, load_policy, load_trained
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.publishing import comparison

# Largest KL from the trained model, nats a token, by what its base was rounded to ...
OF_BASE = {"": 1e-6, "4-bit": 1e-4, "8-bit": 5e-3}
# ... and what the coarser number format of the two adds.
OF_FORMAT = {torch.float32: 0.0, torch.float16: 1e-3, torch.bfloat16: 1e-2}
LARGEST_LOGITS = 1e-3  # difference in 32 bits, where nothing is rounded
LARGEST_FILE = "2GB"  # of weights; one at a time is copied in memory
ARRIVED = 0.1  # how far from whole a layer's adapter may be


def adapter_of(name: str, revision: str = "main") -> str:
    """Folder of the adapter that a name stands for.

    Raises:
        UserError: It is a whole model already.
    """
    path = fetch_adapter(resolve_model(name), revision)
    if not is_adapter(path):
        raise UserError(
            f"run={name}: it is a whole model and has no adapter to merge; use it as it is."
        )
    return path


def base_kind(path: str) -> str:
    """How the base of an adapter was rounded in training: 4-bit, 8-bit, or not."""
    file = Path(path) / BASE_QUANTIZATION
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return next((f"{bits}-bit" for bits in "48" if known.get(f"load_in_{bits}bit")), "")


@dataclass(frozen=True)
class Settings:
    """What a merge is made with.

    Args:
        trained_dtype: Number format that the run was trained in, or auto.
        dtype: That of the merged model.
        onto: "trained" for the base as training saw it, "original" for its unrounded weights.
        max_completion_length: Longest greedy text of the comparison, in tokens.
        trust_remote_code: Whether code beside the base may run.
    """

    trained_dtype: str = "auto"
    dtype: str = "auto"
    onto: str = "trained"
    max_completion_length: int = 48
    trust_remote_code: bool = False

    @property
    def trusted(self) -> dict[str, bool]:
        """The keyword of what loads."""
        return {"trust_remote_code": self.trust_remote_code}


@dataclass(frozen=True)
class Trained:
    """What the unmerged model said, and to what; from `record`."""

    path: str
    recording: comparison.Recording
    prompts: list[Any]
    tokenizer: Any
    dtype: torch.dtype
    is_reward: bool


def record(path: str, prompts: list[Any], settings: Settings) -> Trained:
    """Let the trained model speak, its adapter unmerged on the base as training saw it.

    Args:
        path: The adapter folder.
        prompts: Texts or messages; without any, words of the vocabulary.
        settings: Of the merge.

    Raises:
        UserError: It cannot be loaded.
    """
    is_reward = adapter_task(path) == "SEQ_CLS"
    tokenizer = load_tokenizer(path, **settings.trusted)
    model = _trained(path, is_reward, settings)
    room = settings.max_completion_length
    prompts = [one for one in prompts if fits(model, tokenizer, one, room)] or _words(tokenizer)
    said = comparison.record_reward if is_reward else comparison.record_policy
    recording = said(model, tokenizer, prompts, room)
    return Trained(path, recording, prompts, tokenizer, model.dtype, is_reward)


def merge(trained: Trained, target: Path, settings: Settings) -> None:
    """Merge the adapters into their base and save the model with its tokenizer.

    Args:
        trained: What is merged.
        target: The folder; it is not there yet.
        settings: Of the merge.

    Raises:
        UserError: It cannot be merged.
    """
    path, args = trained.path, ModelConfig(model_name_or_path=trained.path, dtype=settings.dtype)
    if trained.is_reward:
        keys = settings.trusted | {"new_head": True}
        model: Any = load_reward_model(path, settings.dtype, **keys)[0]
    elif settings.onto == "trained":
        model = load_policy(args, **settings.trusted)
    else:
        base = load_policy(base_args(path, args), **settings.trusted)
        model = merge_adapter(load_adapter(base, path), path)
    model.save_pretrained(target, max_shard_size=LARGEST_FILE)
    trained.tokenizer.save_pretrained(target)


def compare(trained: Trained, target: Path, settings: Settings) -> dict[str, Any]:
    """Load the merged model from its folder, as anybody would, and ask it the same.

    Args:
        trained: What the trained one said.
        target: The merged model's folder.
        settings: Of the merge.

    Returns:
        The numbers of the comparison.

    Raises:
        UserError: The two say different things.
    """
    if trained.is_reward:
        model, tokenizer = load_reward_model(str(target), "auto", **settings.trusted)
    else:
        args = ModelConfig(model_name_or_path=str(target), dtype="auto")
        model = load_policy(args, **settings.trusted)
        tokenizer = load_tokenizer(str(target), **settings.trusted)
    model.to(evaluation_device())
    ask = comparison.compare_reward if trained.is_reward else comparison.compare_policy
    told = ask(trained.recording, model, tokenizer, trained.prompts, settings.max_completion_length)
    kind = base_kind(trained.path)
    numbers = {
        "base": kind or str(trained.dtype).removeprefix("torch."),
        "stored": str(model.dtype).removeprefix("torch."),
        "onto": settings.onto,
        "num_prompts": len(trained.prompts),
        "same_tokenizer": _same_tokenizer(trained.tokenizer, tokenizer),
    } | told
    of_format = max(OF_FORMAT.get(dtype, 1e-2) for dtype in (trained.dtype, model.dtype))
    refuse_difference(trained.path, numbers, OF_BASE[kind], of_format)
    return numbers


def refuse_difference(path: str, numbers: dict[str, Any], of_base: float, of_format: float) -> None:
    """Refuse a merged model that says something else than the trained one.

    Args:
        path: The adapter's, for the message.
        numbers: From the comparison.
        of_base: Tolerance of KL for a rounded base, nats a token.
        of_format: Tolerance for the number format.

    Raises:
        UserError: It does; the text says in what.
    """
    low, high = numbers.get("adapter_arrived", (1.0, 1.0))
    places = numbers.get("adapter_arrived_at", ("", ""))
    share, place = min(((low, places[0]), (high, places[1])), key=lambda one: -abs(one[0] - 1))
    is_exact = not of_format and of_base <= OF_BASE[""]
    said = ""
    if not numbers["same_tokenizer"] or numbers.get("prompts_equal", 1.0) < 1:
        said = "its tokenizer or chat template is another one"
    elif abs(share - 1) > ARRIVED:
        said = f"{share:.0%} of the adapter is in {place}"
    elif numbers["onto"] == "original":
        return  # what that costs is told, and was asked for
    elif numbers.get("kl_per_token", 0.0) > of_base + of_format:
        said = f"its KL is {numbers['kl_per_token']:.1e} nats a token"
    elif is_exact and numbers.get("logits_max_difference", 0.0) > LARGEST_LOGITS * max(
        1.0, numbers.get("logits_spread", 0.0)
    ):
        said = f"its logits differ by {numbers['logits_max_difference']:.1e}"
    elif "scores_max_difference" in numbers:
        most = (1e-3 + 10 * (of_base + of_format) ** 0.5) * max(numbers["scores_spread"], 1e-3)
        if numbers["scores_max_difference"] > most:
            said = f"its scores differ by {numbers['scores_max_difference']:.1e}"
    if said:
        remedy = "store it in 32 bits (dtype=float32)" if of_format else "use it unmerged"
        raise UserError(
            f"run={path}: the merged model says something else than the trained one: {said}; "
            f"{remedy}."
        )


def _trained(path: str, is_reward: bool, settings: Settings) -> Any:
    dtype = settings.trained_dtype
    if is_reward:
        return load_reward_model(path, dtype, **settings.trusted)[0].to(evaluation_device())
    args = ModelConfig(model_name_or_path=path, dtype=dtype)
    model = load_trained(args, **settings.trusted)
    is_placed = getattr(model, "is_quantized", False)  # where rounding put it
    return model if is_placed else model.to(evaluation_device())


def _words(tokenizer: Any, number: int = 64) -> list[str]:
    """Texts of one token, from all over the vocabulary."""
    step = max(1, len(tokenizer) // number)
    texts = (tokenizer.decode([token]) for token in range(step // 2, len(tokenizer), step))
    return [text for text in texts if text.strip()][:number]


def _same_tokenizer(one: Any, other: Any) -> bool:
    keys = ("chat_template", "eos_token_id", "bos_token_id", "pad_token_id")
    is_alike = all(getattr(one, key) == getattr(other, key) for key in keys)
    return bool(is_alike and one.get_vocab() == other.get_vocab())


def move_into_place(partial: Path, final: Path) -> None:
    """Give a compared model its name."""
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
