"""Who judges completions: a reward as in training, or a language model that compares pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from recipes.lib.evaluation.people import PeopleJudge, answers_of
from recipes.lib.feedback.agreement import cohen_kappa, krippendorff_alpha
from recipes.lib.generation.completions import Completion
from recipes.lib.models.policies import evaluation_device
from recipes.lib.rewards.judge import LanguageModelJudge
from recipes.lib.rewards.loading import is_judge
from recipes.lib.rewards.reward_models import MEAN, ModelReward, load_reward_functions
from recipes.lib.rewards.scoring import (
    RewardFunction,
    as_answers,
    function_name,
    reward_weights,
    weighted_scores,
)

# Of prompts, their completions and the further columns of the data: one finite score for each.
Judge = Callable[[Sequence[Any], Sequence[Completion], dict[str, list[Any]]], list[float]]


def load_judges(
    named: Sequence[ModelReward],
    batch_size: int,
    weights: Sequence[float] | None = None,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Judge | LanguageModelJudge | PeopleJudge]:
    """Find those who judge two completions, by name.

    As `load_judge`, but a language model compares, and a feedback run or a .jsonl file of pairs are
    people's answers.

    Raises:
        UserError: One cannot be used.
    """
    trusted = {"trust_remote_code": trust_remote_code}
    made: dict[str, Judge | LanguageModelJudge | PeopleJudge] = {}
    for one in named:
        name = one.name
        if answers_of(name):
            made[name] = PeopleJudge(name)
        elif is_judge(name):
            made[name] = LanguageModelJudge(name, evaluation_device(), **trusted)
        else:
            made[name] = load_judge(one, batch_size, weights, **trusted)
    return made


def agreement(shares: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """How far judges agree on who wins a prompt, or that it is a tie.

    Returns:
        Krippendorff's alpha of all, and for each two the prompts that both judged and Cohen's
        kappa; None where they are not defined.
    """
    table_JN = np.array([*shares.values()], dtype=float)  # None becomes NaN
    kappas = {}
    for one, other in combinations(range(len(shares)), 2):
        number, kappa = cohen_kappa(table_JN[[one, other]], "nominal")
        both = " and ".join([[*shares][one], [*shares][other]])
        kappas[both] = {"num_prompts": number, "kappa": kappa}
    return {"alpha": krippendorff_alpha(table_JN, "nominal"), "kappas": kappas}


def load_judge(
    name: str | ModelReward | Sequence[ModelReward],
    batch_size: int = 64,
    weights: Sequence[float] | None = None,
    *,
    trust_remote_code: bool = False,
) -> Judge:
    """Find a judge.

    Args:
        name: A reward function as file.py:name or module:name, which may leave arguments of those
            out; a judge's YAML file; or a reward model: a run, a folder or a Hub id; several
            judge by their weighted sum.
        batch_size: Texts at a time, of a reward model.
        weights: One for each reward function and aspect of a reward model; None for 1 each.
        trust_remote_code: Whether code beside a reward model may run.

    Raises:
        UserError: There is no such function or reward model, or there are not as many weights; or,
            when it is called, it does not return one finite number for each completion.
    """
    given = ModelReward(name, MEAN, "auto") if isinstance(name, str) else name
    found = load_reward_functions(
        given, None, batch_size, evaluation_device(), trust_remote_code=trust_remote_code
    )
    functions = [*map(_with_fewer_arguments, found)]
    mix = reward_weights(functions, weights)

    def judge(
        prompts: Sequence[Any], completions: Sequence[Completion], columns: dict[str, list[Any]]
    ) -> list[float]:
        answers = as_answers(prompts, [completion.text for completion in completions])
        ids = [completion.ids for completion in completions]
        scores, _ = weighted_scores(functions, mix, prompts, answers, ids, columns)
        return [float(score) for score in scores]

    return judge


def _with_fewer_arguments(function: RewardFunction) -> RewardFunction:
    """The function, given only what it names: a judge may be f(prompts, completions)."""
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return function

    def called(**given: Any) -> Any:
        return function(**{name: value for name, value in given.items() if name in parameters})

    called.__name__ = function_name(function)
    return called
