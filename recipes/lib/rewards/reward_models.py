"""Reward models, called like any other reward function.

Prompts and completions are text, or messages where the prompts are messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError

from recipes.lib.errors import UserError
from recipes.lib.models.folders import is_adapter, resolve_model
from recipes.lib.models.forward import length_batches, pad_right
from recipes.lib.models.reward_heads import heads_of
from recipes.lib.models.tokenizers import without_bos
from recipes.lib.rewards.judge import LanguageModelJudge
from recipes.lib.rewards.loading import is_function_reference, is_judge, load_function
from recipes.lib.rewards.scoring import RewardFunction
from recipes.lib.rewards.shared_base import SharedBase


@dataclass(frozen=True)
class Aggregation:
    """How the outputs of an ensemble become one score: their mean, their minimum, mean - k sd."""

    name: str = "mean"
    sd_weight: float = 1.0  # k, of the population's standard deviation

    def __call__(self, outputs_BK: torch.Tensor) -> torch.Tensor:
        """One score for each row."""
        if self.name == "min":
            return outputs_BK.amin(-1)
        mean_B = outputs_BK.mean(-1)
        if self.name == "mean":
            return mean_B
        return mean_B - self.sd_weight * outputs_BK.std(-1, correction=0)


MEAN = Aggregation()


@dataclass(frozen=True)
class ModelReward:
    """A reward model by its name, what becomes of its ensemble, and how it is loaded."""

    name: str
    aggregation: Aggregation
    dtype: str = "float32"


class RewardModel:
    """A reward model, called like a reward function: of several aspects the sum.

    The text is rendered with the reward model's own tokenizer and chat template, closed by its end
    token exactly once, as TRL's RewardTrainer does in training.

    Args:
        model: The classifier; a PeftModel too.
        tokenizer: Its tokenizer.
        name: Name in messages and metrics.
        batch_size: Rows in one forward pass.
        aggregation: How an ensemble speaks with one voice.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        batch_size: int = 32,
        aggregation: Aggregation = MEAN,
    ) -> None:
        heads = heads_of(model.config)
        if heads is None:
            raise UserError(
                f"reward model {name} has {model.config.num_labels} outputs; a reward model has 1."
            )
        self.heads, self.aggregation = heads, aggregation
        self.newest: tuple[list[str], torch.Tensor] | None = None  # texts with their scores
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

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Score each row."""
        scores: list[float] = self.scores(prompts, completions).sum(-1).tolist()
        return scores

    def by_aspect(self) -> list[RewardFunction]:
        """One reward function for each aspect; all of them share one pass."""
        aspects = self.heads.aspects
        return [self] if len(aspects) == 1 else [*map(self.of_aspect, aspects)]

    def of_aspect(self, aspect: str) -> RewardFunction:
        """The reward function of one aspect."""
        place = self.heads.aspects.index(aspect)

        def reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
            scores: list[float] = self.scores(prompts, completions)[:, place].tolist()
            return scores

        reward.__name__ = f"{self.__name__}/{aspect}"
        return reward

    def scores(self, prompts: Sequence[Any], completions: Sequence[Any]) -> torch.Tensor:
        """Score of each row in each aspect; batches are by length, so that little is padded."""
        texts = self.texts(prompts, completions)
        if self.newest is not None and self.newest[0] == texts:
            return self.newest[1]
        is_plain = not prompts or isinstance(prompts[0], str)
        scores = self.score_tokens(self.tokenizer(texts, add_special_tokens=is_plain)["input_ids"])
        self.newest = (texts, scores) if len(self.heads.aspects) > 1 else None
        return scores

    @torch.no_grad()
    def score_tokens(self, rows: list[list[int]]) -> torch.Tensor:
        """Score of each row of tokens in each aspect."""
        outputs = torch.zeros(len(rows), len(self.heads.names()))
        for chosen in length_batches(list(map(len, rows)), self.batch_size):
            found = self.outputs([rows[i] for i in chosen])
            if found.shape[1] != outputs.shape[1]:  # a head that was taken off
                outputs = outputs.new_zeros(len(rows), found.shape[1])
            outputs[list(chosen)] = found
        return self.aggregation(outputs.unflatten(1, (-1, self.heads.ensemble)))

    def outputs(self, rows: list[list[int]]) -> torch.Tensor:
        """All outputs of rows of tokens, shape (rows, outputs), on the CPU."""
        pad = self.model.config.get_text_config().pad_token_id
        ids, mask = pad_right(rows, pad, next(self.model.parameters()).device)
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits.float().cpu()


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
    key: str = "reward_funcs",
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
        key: Key that named them, for messages.
        trust_remote_code: Whether code beside a reward model may run.

    Returns:
        The functions, in order; a model of several aspects is several of them.

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
    loaded = [
        _load(entry, tokenizer, (batch_size, device, shared), key, trust_remote_code)
        for entry, tokenizer in zip(given, tokenizers, strict=True)
    ]
    models = [one.by_aspect() if isinstance(one, RewardModel) else [one] for one in loaded]
    return [function for functions in models for function in functions]


def _load(
    entry: Any,
    tokenizer: Any,
    own: tuple[int, Any, SharedBase | None],
    key: str,
    trusted: bool,
) -> RewardFunction:
    batch_size, device, shared = own
    aggregation, dtype = MEAN, "float32"
    if isinstance(entry, ModelReward):
        entry, aggregation, dtype = entry.name, entry.aggregation, entry.dtype
    if isinstance(entry, str) and is_function_reference(entry):
        return load_function(entry)
    if isinstance(entry, (str, Path)) and is_judge(str(entry)):
        return LanguageModelJudge(str(entry), device, trust_remote_code=trusted)
    if isinstance(entry, (str, Path)):
        if shared is not None and is_adapter(resolve_model(str(entry))):
            role = shared.reward(str(entry), key, trust_remote_code=trusted)
            return RewardModel(*role, Path(entry).name, batch_size, aggregation)
        from recipes.lib.models.classifiers import load_reward_model

        model, tokenizer = load_reward_model(str(entry), dtype, trust_remote_code=trusted)
        name = Path(entry).name
        return RewardModel(model.to(device), tokenizer, name, batch_size, aggregation)
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
    raise UserError(f"{key}={entry!r} is neither a function nor a reward model.")
