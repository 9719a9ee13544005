"""Merging a run's adapters into a plain model, and refusing one that says something else."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import partial
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
    load_rounded,
)
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.folders import fetch_adapter, is_adapter, resolve_model
from recipes.lib.models.merging import merge_adapter, refuse_prompt, save_merged
from recipes.lib.models.policies import load_policy, load_trained, placed, refuse_stored_quantized
from recipes.lib.models.reward_heads import adapter_heads
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.publishing import comparison

# Largest KL from the trained model, nats a token, by what its base was rounded to ...
OF_BASE = {"": 1e-6, "4-bit": 1e-4, "8-bit": 5e-3}
# ... and what the coarser number format of the two adds; beyond that, twice what storing costs.
OF_FORMAT = {torch.float32: 0.0, torch.float16: 1e-4, torch.bfloat16: 1e-3}
LARGEST_LOGITS = 1e-3  # difference in 32 bits, where nothing is rounded; of larger logits a share
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
LARGEST_FILE = "500MB"  # of weights; one at a time lies in memory
ARRIVED = 0.1  # how far from whole a layer's adapter may be


def adapter_of(name: str) -> str:
    """Folder of the adapter that a name stands for.

    Raises:
        UserError: It is a whole model already.
    """
    path = fetch_adapter(resolve_model(name))
    if not is_adapter(path):
        raise UserError(
            f"run={name}: it is a whole model and has no adapter to merge; use it as it is."
        )
    return path


@dataclass
class Merge:
    """One merge: `record` lets the trained model speak, `save` merges, `compare` asks the result.

    Args:
        path: The adapter folder.
        prompts: Texts or messages to compare on; without any, words of the vocabulary.
        trained_dtype: Number format that the run was trained in.
        dtype: That of the merged model.
        onto: "trained" for the base as training saw it, "original" for its unrounded weights.
        max_completion_length: Longest greedy text of the comparison, in tokens.
        trusted: The keyword trust_remote_code of what loads.
        num_words: How many words of the vocabulary, where there are no prompts.
    """

    path: str
    prompts: list[Any]
    trained_dtype: str
    dtype: str
    onto: str = "trained"
    max_completion_length: int = 48
    trusted: dict[str, Any] = field(default_factory=dict)
    num_words: int = 64

    def record(self) -> None:
        """Let the trained model speak, its adapter unmerged on the base as training saw it.

        Raises:
            UserError: It cannot be loaded.
        """
        self.is_reward = adapter_task(self.path) == "SEQ_CLS"
        self.tokenizer = load_tokenizer(self.path, **self.trusted)
        model, room = placed(self._trained(self.trained_dtype)), self.max_completion_length
        usable = [one for one in self.prompts if fits(model, self.tokenizer, one, room)]
        self.prompts = usable or _words(self.tokenizer, self.num_words)
        self.recording = comparison.record(model, self.tokenizer, self.prompts, room)
        self.format = model.dtype

    def _sees(self) -> bool | None:
        # Without a processor beside it the adapter is one of the class for text, if there is one.
        return any((Path(self.path) / name).is_file() for name in PROCESSORS) or None

    def _args(self, dtype: str) -> ModelConfig:
        return ModelConfig(model_name_or_path=self.path, dtype=dtype)

    def save(self, target: Path) -> None:
        """Merge the adapters into their base and save the model with its tokenizer.

        Args:
            target: The folder; it is not there yet.

        Raises:
            UserError: It cannot be merged.
        """
        if self.onto == "original":
            base = self._load(base_args(self.path, self._args(self.dtype)), new_head=True)
            adapted = load_adapter(base, self.path)
        else:
            adapted = self._trained(self.dtype)
            if not _base_kind(self.path):
                refuse_stored_quantized(adapted.get_base_model(), self.path)
        refuse_prompt(adapted.active_peft_config, self.path)
        save_merged(adapted, target, LARGEST_FILE)
        self.tokenizer.save_pretrained(target)
        for name in PROCESSORS:  # of a model that reads pictures
            if (file := Path(self.path) / name).is_file():
                shutil.copy(file, target)

    def _trained(self, dtype: str) -> Any:
        if self.is_reward:
            return load_reward_model(self.path, dtype, **self.trusted)[0]
        return load_trained(self._args(dtype), **self.trusted, shows_pictures=self._sees())

    def whole(self) -> Any:
        """The trained model, merged in 32 bits in memory."""
        args = base_args(self.path, self._args(self.trained_dtype))
        base = load_rounded(self.path, args, partial(self._load, new_head=True)).float()
        return placed(merge_adapter(load_adapter(base, self.path), self.path))

    def _load(self, args: ModelConfig, *, new_head: bool) -> Any:
        if not self.is_reward:
            return load_policy(args, **self.trusted, shows_pictures=self._sees())
        keys: dict[str, Any] = {"new_head": new_head, "model_args": args, **self.trusted}
        keys["heads"] = adapter_heads(self.path)
        return load_reward_model(str(args.model_name_or_path), str(args.dtype), **keys)[0]

    def compare(self, target: Path) -> dict[str, Any]:
        """Load the merged model from its folder, as anybody would, and ask it the same.

        Args:
            target: The folder.

        Returns:
            The numbers of the comparison.

        Raises:
            UserError: The two say different things.
        """
        args = ModelConfig(model_name_or_path=str(target), dtype="auto")
        model = placed(self._load(args, new_head=False))
        tokenizer = load_tokenizer(str(target), **self.trusted)
        asked = (self.prompts, self.max_completion_length)
        told = comparison.compare(self.recording, model, tokenizer, *asked)
        kind = _base_kind(self.path)
        numbers = {
            "base": kind or str(self.format).removeprefix("torch."),
            "stored": str(model.dtype).removeprefix("torch."),
            "onto": self.onto,
            "num_prompts": len(self.prompts),
            "same_tokenizer": _same_tokenizer(self.tokenizer, tokenizer),
        } | told
        coarser = max(self.format, model.dtype, key=lambda dtype: OF_FORMAT.get(dtype, 1e-3))
        of_format = OF_FORMAT.get(coarser, 1e-3)
        kl: Any = 0.0 if self.onto == "original" else numbers.get("kl_per_token", 0.0)
        if of_format and kl > OF_BASE[kind] + of_format:
            # Two models that compute in 16 bits are farther from each other than from the truth.
            whole = self.whole()
            numbers["kl_from_float32"] = comparison.kl_between(whole, model, self.recording)
            rounded = comparison.rounded(whole, coarser)
            stored = comparison.kl_between(whole, rounded, self.recording)
            numbers["kl_of_storing"] = stored
            of_format = max(of_format, 2 * stored)
        refuse_difference(self.path, numbers, OF_BASE[kind], of_format)
        return numbers


def refuse_difference(path: str, numbers: dict[str, Any], of_base: float, of_format: float) -> None:
    """Refuse a merged model that says something else than the trained one.

    Args:
        path: The adapter's, for the message.
        numbers: From the comparison; NaN is a difference.
        of_base: Tolerance of KL for a rounded base, nats a token.
        of_format: Tolerance for the number format.

    Raises:
        UserError: It does; the text says in what.
    """
    said = _difference(numbers, of_base, of_format)
    if said:
        remedy = "store it in 32 bits (dtype=float32)" if of_format else "use it unmerged"
        raise UserError(
            f"run={path}: the merged model says something else than the trained one: {said}; "
            f"{remedy}."
        )


UNSAID = {  # of a policy scores, of a reward model the rest
    **{"prompts_equal": 1.0, "greedy_equal": 1.0, "kl_per_token": 0.0},
    **{"logits_max_difference": 0.0, "logits_spread": 0.0},
    **{"scores_max_difference": 0.0, "scores_spread": 1.0},
    **{"adapter_arrived": (), "adapter_arrived_at": ()},
}


def _difference(numbers: dict[str, Any], of_base: float, of_format: float) -> str:
    told: dict[str, Any] = UNSAID | numbers
    is_one = told["same_tokenizer"] and told["prompts_equal"] == 1
    checks = [(is_one, "its tokenizer or chat template is another one")]
    arrived = zip(told["adapter_arrived"], told["adapter_arrived_at"], strict=True)
    if told["onto"] == "trained":  # what the original weights cost is told, and was asked for
        checks += [
            (abs(share - 1) <= ARRIVED, f"{share:.0%} of the adapter is in {place}")
            for share, place in arrived
        ]
        is_rounded = of_format > 0 or of_base > OF_BASE[""]
        logits, scores = told["logits_max_difference"], told["scores_max_difference"]
        most = LARGEST_LOGITS * max(1.0, told["logits_spread"])
        # Logits that are off by d, in units of their spread, are some d^2 / 2 nats apart.
        # Of a score, which is one number, no mean is taken: ten times.
        of_scores = (1e-3 + (2 * (of_base + 10 * of_format)) ** 0.5) * told["scores_spread"]
        kl = told.get("kl_from_float32", told["kl_per_token"])
        checks += [
            (kl <= of_base + of_format, f"its KL is {kl:.1e} nats a token"),
            (is_rounded or logits <= most, f"its logits differ by {logits:.1e}"),
            (is_rounded or told["greedy_equal"] == 1, "its greedy texts are others"),
            (scores <= of_scores, f"its scores differ by {scores:.1e}"),
        ]
    return next((words for is_right, words in checks if not is_right), "")


def _base_kind(path: str) -> str:
    """How the base of an adapter was rounded in training: 4-bit, 8-bit, or not."""
    file = Path(path) / BASE_QUANTIZATION
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return next((f"{bits}-bit" for bits in "48" if known.get(f"load_in_{bits}bit")), "")


def _words(tokenizer: Any, number: int) -> list[str]:
    """Texts of one token, from all over the vocabulary."""
    step = max(1, len(tokenizer) // number)
    texts = (tokenizer.decode([token]) for token in range(step // 2, len(tokenizer), step))
    return [text for text in texts if text.strip()][:number]


def _same_tokenizer(one: Any, other: Any) -> bool:
    keys = ("chat_template", "eos_token_id", "bos_token_id", "pad_token_id")
    is_alike = all(getattr(one, key) == getattr(other, key) for key in keys)
    return bool(is_alike and one.get_vocab() == other.get_vocab())
