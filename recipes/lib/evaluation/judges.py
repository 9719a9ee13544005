"""Who judges completions: a Python function of texts, or a reward model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recipes.lib.data.prompts import prompt_text
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.policies import evaluation_device
from recipes.lib.rewards.loading import is_function_reference, load_function
from recipes.lib.rewards.reward_models import RewardModel
from recipes.lib.rewards.scoring import as_answers, weighted_scores

Judge = Callable[[list[Any], list[str]], list[float]]


def load_judge(
    name: str, dtype: str = "auto", batch_size: int = 64, *, trust_remote_code: bool = False
) -> Judge:
    """Find a judge.

    Args:
        name: A function f(prompts, completions) -> scores of plain texts, as file.py:name or
            module:name; or a reward model: a run, a folder or a Hub id.
        dtype: Of a reward model.
        batch_size: Texts at a time, of a reward model.
        trust_remote_code: Whether code beside a reward model may run.

    Returns:
        A function of prompts (text or messages) and completion texts that gives one finite score
        for each.

    Raises:
        UserError: There is no such function or reward model; or, when it is called, it does not
            return one finite number for each completion.
    """
    if is_function_reference(name):
        return _function_judge(load_function(name))
    model, tokenizer = load_reward_model(name, dtype, trust_remote_code=trust_remote_code)
    reward = RewardModel(model.to(evaluation_device()), tokenizer, name, batch_size)

    def judge(prompts: list[Any], completions: list[str]) -> list[float]:
        return reward(prompts, as_answers(prompts, completions))

    return judge


def _function_judge(function: Callable[..., Any]) -> Judge:
    def called(prompts: list[str], completions: list[str], **_: Any) -> Any:
        return function(prompts=prompts, completions=completions)

    called.__name__ = getattr(function, "__name__", "judge")

    def judge(prompts: list[Any], completions: list[str]) -> list[float]:
        texts = [prompt_text(prompt) for prompt in prompts]
        no_ids: list[list[int]] = [[]] * len(texts)
        scores, _ = weighted_scores([called], [1.0], texts, completions, no_ids, {})
        return [float(value) for value in scores]

    return judge
