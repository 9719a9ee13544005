"""Models complete the same prompts: completions, their KL from the last model, and who wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from torch import Tensor
from trl import ModelConfig

from recipes.lib.errors import UserError, note
from recipes.lib.evaluation.judges import Judge
from recipes.lib.evaluation.length_control import LEAST, length_controlled
from recipes.lib.evaluation.people import PeopleJudge
from recipes.lib.evaluation.win_rate import outcomes, win_rate
from recipes.lib.generation.completions import Completion, complete
from recipes.lib.models.likelihood import completion_logps
from recipes.lib.models.policies import load_policy, placed
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.rewards.judge import LanguageModelJudge
from recipes.lib.rewards.scoring import as_answers
from recipes.lib.runs.settings import run_of, template_kwargs


@dataclass(frozen=True)
class Side:
    """One side's completions of the prompts and what the judge says of them.

    Of a language model that compared them in both orders the scores are shares of the win: 1, 0.5
    or 0, None where there is no verdict; `verdicts` are what it said, empty where people did.
    """

    completions: list[Completion]
    scores: list[float | None]
    verdicts: list[tuple[str | None, str | None]] | None = None

    def facts(self, suffix: str) -> dict[str, float]:
        """Mean score, mean length in tokens, share of completions that the model ended itself."""
        scores = [score for score in self.scores if score is not None]
        return ({f"score{suffix}": fmean(scores)} if self.verdicts is None else {}) | {
            f"completion_length{suffix}": fmean(len(c.ids) for c in self.completions),
            f"eos_fraction{suffix}": fmean(c.has_ended for c in self.completions),
        }


# What a judge says of each two contestants, by their places.
Pairs = dict[tuple[int, int], tuple[Side, Side]]


def complete_all(
    names: Sequence[str],
    prompts: list[Any],
    sampling: dict[str, Any],
    dtype: str,
    *,
    has_baseline: bool,
    one_template: bool = False,
    trust_remote_code: bool = False,
) -> tuple[list[list[Completion]], list[dict[str, float]]]:
    """Let models complete the same prompts, with keys of `complete`; one is in memory at a time.

    Each model is asked by its own chat template, with the arguments that its run gave it. A
    baseline is the last one. Where all others are asked alike it takes their arguments if it has
    none, and with one_template their template.

    Returns:
        The completions of each model; of each but the last `kl` with `kl_stderr`, KL(model || last)
        in nats per completion: none without a baseline, of greedy sampling, or of a model whose
        vocabulary is not the last one's.

    Raises:
        UserError: A model cannot be used.
    """
    trusted: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    tokenizers = [load_tokenizer(name, **trusted) for name in names]
    given = [template_kwargs(run_of(name)) for name in names]
    ways = [*zip([tokenizer.chat_template for tokenizer in tokenizers], given, strict=True)][:-1]
    if has_baseline and ways.count(ways[0]) == len(ways):
        if one_template:
            tokenizers[-1].chat_template = tokenizers[0].chat_template
        given[-1] = given[-1] or given[0]
    words = tokenizers[-1].get_vocab() if has_baseline and sampling["temperature"] > 0 else None
    sides: list[list[Completion]] = []
    logps: dict[int, list[Tensor]] = {}  # by its place, of a model's own completions
    kls: list[dict[str, float]] = [{} for _ in names[:-1]]
    for place, (name, tokenizer) in enumerate(zip(names, tokenizers, strict=True)):
        how = sampling | {"template_kwargs": given[place]}
        args = ModelConfig(model_name_or_path=name, dtype=dtype)
        model = placed(load_policy(args, **trusted))
        sides.append(complete(model, tokenizer, prompts, **how))
        if place == len(kls):
            for other, own in logps.items():
                kls[other] = kl_estimate(own, _logps(model, sides[other], sampling))
        elif tokenizer.get_vocab() == words:
            logps[place] = _logps(model, sides[place], sampling)
        del model
    return sides, kls


def judged(
    judge: Judge | LanguageModelJudge | PeopleJudge,
    names: Sequence[str],
    prompts: list[Any],
    columns: dict[str, list[Any]],
    sides: Sequence[list[Completion]],
    pairs: Sequence[tuple[int, int]],
) -> Pairs:
    """What one judge says of the pairs of sides.

    Raises:
        UserError: There is no verdict at all.
    """
    if not isinstance(judge, LanguageModelJudge | PeopleJudge):
        scored = [Side(side, [*judge(prompts, side, columns)]) for side in sides]
        return {(a, b): (scored[a], scored[b]) for a, b in pairs}
    texts, made = [[one.text for one in side] for side in sides], {}
    for a, b in pairs:
        verdicts: list[tuple[str | None, str | None]] = []
        if isinstance(judge, PeopleJudge):
            shares = judge.shares(prompts, (names[a], names[b]), (texts[a], texts[b]))
            told = f"has no answers to these prompts that compare {' and '.join(names)}; "
            told += "let people compare these runs on them (rlhf feedback serve)."
        else:
            verdicts = judge.compare(prompts, *(as_answers(prompts, texts[n]) for n in (a, b)))
            shares = [_share(*both) for both in verdicts]
            told = "no pair got a verdict; name another model."
        if all(share is None for share in shares):
            raise UserError(f"judge={judge.name}: {told}")
        rest = [None if share is None else 1.0 - share for share in shares]
        made[a, b] = Side(sides[a], shares, verdicts), Side(sides[b], rest, verdicts)
    return made


def _share(one: str | None, other: str | None) -> float | None:
    """The share of the win by verdicts in both orders; one that the order decides is a tie."""
    if one is None or other is None:
        return None
    return {"one": 1.0, "other": 0.0}.get(one, 0.5) if one == other else 0.5


def scores_over_last(pairs: Pairs, number: int) -> list[list[float | None]]:
    """Scores of each contestant; by a judge that compares, shares of the win over the last one."""
    theirs = pairs[0, number - 1][1]
    own = theirs.scores if theirs.verdicts is None else [0.5 for _ in theirs.scores]
    return [*(pairs[place, number - 1][0].scores for place in range(number - 1)), [*own]]


def shares_of(ours: Side, theirs: Side) -> list[float | None]:
    """The share of the win on each prompt; None where the judge said nothing of one side."""
    pairs = zip(ours.scores, theirs.scores, strict=True)
    return [
        None if one is None or other is None else float(outcomes([one], [other])[0])
        for one, other in pairs
    ]


def rates(
    shares: Sequence[float | None],
    ours: Sequence[Completion],
    theirs: Sequence[Completion],
    seed: int,
) -> dict[str, Any]:
    """What one judge's shares of the win, as of `shares_of`, say of two sides.

    Returns:
        win_rate and, of enough prompts, length_controlled_win_rate (lengths in tokens), each with
        its interval as ..._ci95; before them num_judged, where that is not all.
    """
    kept = [row for row, share in enumerate(shares) if share is not None]
    wins = [float(shares[row] or 0) for row in kept]
    made = {"win_rate": win_rate(wins, [0.5] * len(wins), seed=seed)}
    lengths = [np.array([float(len(side[row].ids)) for row in kept]) for side in (ours, theirs)]
    controlled = length_controlled(np.array([wins]), lengths[0][None], lengths[1], seed=seed)
    if controlled:
        made["length_controlled_win_rate"] = controlled[0]
    else:
        note(
            f"{len(kept)} prompts are too few for a length-controlled win rate; {LEAST} are enough."
        )
    numbers: dict[str, Any] = {} if len(kept) == len(shares) else {"num_judged": len(kept)}
    for name, one in made.items():
        numbers |= {name: one.value, f"{name}_ci95": [one.low, one.high]}
    return numbers


def kl_estimate(logps: Sequence[Tensor], baseline_logps: Sequence[Tensor]) -> dict[str, float]:
    """KL of a model from a baseline, from log-probabilities of the model's own tokens in nats.

    Returns:
        `kl`, the mean over completions of the summed log-ratio (k1), in nats per completion, and
        `kl_stderr`, its standard error, where there are two completions or more.

    Source: Schulman, Approximating KL divergence, 2020, estimator k1.
    """
    ratios = [
        float((one.double() - other.double()).sum())
        for one, other in zip(logps, baseline_logps, strict=True)
    ]
    numbers = {"kl": fmean(ratios)}
    if len(ratios) > 1:
        numbers["kl_stderr"] = stdev(ratios) / math.sqrt(len(ratios))
    return numbers


def _logps(model: Any, completions: list[Completion], sampling: dict[str, Any]) -> list[Tensor]:
    prompts, ids = [c.prompt_ids for c in completions], [c.ids for c in completions]
    how = {key: sampling[key] for key in ("temperature", "batch_size")}
    return completion_logps(model, prompts, ids, **how)
