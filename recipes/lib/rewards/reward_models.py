"""Reward models, called like any other reward function.

Prompts and completions are text, or messages where the prompts are messages.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError

from recipes.lib.errors import UserError
from recipes.lib.models.folders import is_adapter, resolve_model
from recipes.lib.models.forward import length_batches, pad_right
from recipes.lib.models.tokenizers import without_bos
from recipes.lib.rewards.judge import LanguageModelJudge
from recipes.lib.rewards.loading import is_function_reference, is_judge, load_function
from recipes.lib.rewards.scoring import RewardFunction
from recipes.lib.rewards.shared_base import SharedBase


class RewardModel:
    """A sequence classifier with one output, called like a reward function.

    The text is rendered with the reward model's own tokenizer and chat template, closed by its end
    token exactly once, as TRL's RewardTrainer does in training.

    Args:
        model: The classifier; a PeftModel too.
        tokenizer: Its tokenizer.
        name: Name in messages and metrics.
        batch_size: Rows in one forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, batch_size: int = 32) -> None:
        if model.config.num_labels != 1:
            raise UserError(
                f"reward model {name} has {model.config.num_labels} outputs; a reward model has 1."
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.__name__ = name
        self.batch_size = batch_size

    def texts(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[str]:
        """Render what the model reads.

        Args:
            prompts: Text or messages.
            completions: Text or messages.

        Returns:
            One text for each row.
        """
        if prompts and not isinstance(prompts[0], str):
            spoken = [join_turns(p, c) for p, c in zip(prompts, completions, strict=True)]
            try:
                return [self.tokenizer.apply_chat_template(m, tokenize=False) for m in spoken]
            except (ValueError, TemplateError) as error:
                raise UserError(
                    f"reward model {self.__name__} cannot render messages "
                    f"({' '.join(str(error).split()).rstrip('.')}); give it a chat template, or "
                    "use prompts of plain text."
                ) from error
        end = self.tokenizer.eos_token
        pairs = zip((without_bos(p, self.tokenizer) for p in prompts), completions, strict=True)
        return [p + c if c.endswith(end) else p + c + end for p, c in pairs]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Score each row; the order of batches is by length, so that little is padded."""
        texts = self.texts(prompts, completions)
        is_plain = not prompts or isinstance(prompts[0], str)
        rows = self.tokenizer(texts, add_special_tokens=is_plain)["input_ids"]
        scores = [0.0] * len(rows)
        for chosen in length_batches(list(map(len, rows)), self.batch_size):
            for i, score in zip(chosen, self._forward([rows[i] for i in chosen]), strict=True):
                scores[i] = score
        return scores

    def _forward(self, rows: list[list[int]]) -> list[float]:
        pad = self.model.config.get_text_config().pad_token_id
        ids, mask = pad_right(rows, pad, next(self.model.parameters()).device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        return logits.float().squeeze(-1).tolist()


def join_turns(prompt: Sequence[Any], completion: Sequence[Any]) -> list[Any]:
    """A conversation, in which a completion goes on with the assistant's turn that it was given."""
    if not prompt or not completion or prompt[-1]["role"] != "assistant":
        return [*prompt, *completion]
    text = str(prompt[-1].get("content") or "") + str(completion[0].get("content") or "")
    return [*prompt[:-1], completion[0] | {"content": text}, *completion[1:]]


def load_reward_functions(
    reward_funcs: Any,
    processing_classes: Any,
    batch_size: int,
    device: Any,
    shared: SharedBase | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[RewardFunction]:
    """Turn what a user gave as rewards into functions of one signature.

    Args:
        reward_funcs: A function, a classifier, its folder, run or Hub id, a reference
            `file.py:function`, a judge's YAML file, a name of TRL's such as `accuracy_reward`, or
            a list of these.
        processing_classes: Tokenizer of each classifier that is given as a model; None elsewhere.
        batch_size: Rows in one forward pass of a reward model.
        device: Where reward models run.
        shared: The policy's base, for reward adapters that are given by name.
        trust_remote_code: Whether code beside a reward model may run.

    Returns:
        The functions, in order.

    Raises:
        UserError: Nothing was given, or something that is no reward.
    """
    given = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    tokenizers = (
        list(processing_classes)
        if isinstance(processing_classes, (list, tuple))
        else [processing_classes] * len(given)
    )
    if not given:
        raise UserError("reward_funcs=[] names no reward; give a function or a reward model.")
    if len(tokenizers) != len(given):
        raise UserError(
            f"reward_processing_classes has {len(tokenizers)} entries for {len(given)} "
            "reward_funcs; give one for each, None for a function."
        )
    return [
        _load(entry, tokenizer, batch_size, device, shared, trust_remote_code)
        for entry, tokenizer in zip(given, tokenizers, strict=True)
    ]


def _load(
    entry: Any,
    tokenizer: Any,
    batch_size: int,
    device: Any,
    shared: SharedBase | None,
    trusted: bool,
) -> RewardFunction:
    if isinstance(entry, str) and is_function_reference(entry):
        return load_function(entry)
    if isinstance(entry, (str, Path)) and is_judge(str(entry)):
        return LanguageModelJudge(str(entry), device, trust_remote_code=trusted)
    if isinstance(entry, (str, Path)):
        if shared is not None and is_adapter(resolve_model(str(entry))):
            role = shared.reward(str(entry), trust_remote_code=trusted)
            return RewardModel(*role, Path(entry).name, batch_size)
        from recipes.lib.models.classifiers import load_reward_model

        model, tokenizer = load_reward_model(str(entry), trust_remote_code=trusted)
        return RewardModel(model.to(device), tokenizer, Path(entry).name, batch_size)
    if isinstance(entry, torch.nn.Module):
        from recipes.lib.models.tokenizers import load_tokenizer

        name = str(entry.config._name_or_path)  # type: ignore[union-attr]
        if tokenizer is None:
            tokenizer = load_tokenizer(name, trust_remote_code=trusted)
        config = entry.config.get_text_config()  # type: ignore[union-attr,operator]
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        return RewardModel(entry.to(device), tokenizer, Path(name).name or "reward", batch_size)
    if callable(entry):
        return entry
    raise UserError(f"reward_funcs={entry!r} is neither a function nor a reward model.")
