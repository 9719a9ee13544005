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
from recipes.lib.models.policies import evaluation_device, load_policy
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.rewards.judge import LanguageModelJudge
from recipes.lib.rewards.scoring import as_answers


@dataclass(frozen=True)
class SamplingSettings:
    """How both sides sample: tokens, temperature (0 is greedy), batch and seed."""

    max_new_tokens: int
    temperature: float
    batch_size: int
    seed: int


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
    sampling: SamplingSettings,
    dtype: str,
    *,
    has_baseline: bool,
    one_template: bool = False,
    trust_remote_code: bool = False,
) -> tuple[list[list[Completion]], list[dict[str, float]]]:
    """Let models complete the same prompts; one is in memory at a time.

    Args:
        names: Models, as in resolve_model.
        prompts: Texts or messages.
        sampling: How all sample.
        dtype: Of all models.
        has_baseline: Whether the last one is what the others are compared with.
        one_template: Whether the last reads messages by the chat template of the others.
        trust_remote_code: Whether code beside the models may run.

    Returns:
        The completions of each model; of each but the last `kl` with `kl_stderr`, KL(model || last)
        in nats per completion: none without a baseline, of greedy sampling, or of a model whose
        vocabulary is not the last one's.

    Raises:
        UserError: A model cannot be used.
    """
    trusted: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    tokenizers = [load_tokenizer(name, **trusted) for name in names]
    if one_template:
        tokenizers[-1].chat_template = tokenizers[-2].chat_template
    words = tokenizers[-1].get_vocab() if has_baseline and sampling.temperature > 0 else None
    sides: list[list[Completion]] = []
    logps: dict[int, list[Tensor]] = {}  # by its place, of a model's own completions
    kls: list[dict[str, float]] = [{} for _ in names[:-1]]
    for place, (name, tokenizer) in enumerate(zip(names, tokenizers, strict=True)):
        args = ModelConfig(model_name_or_path=name, dtype=dtype)
        model = load_policy(args, **trusted).to(evaluation_device())
        sides.append(complete(model, tokenizer, prompts, **vars(sampling)))
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
    if isinstance(judge, LanguageModelJudge):
        return {(a, b): compared_sides(judge, prompts, sides[a], sides[b]) for a, b in pairs}
    if not isinstance(judge, PeopleJudge):
        scored = [Side(side, [*judge(prompts, side, columns)]) for side in sides]
        return {(a, b): (scored[a], scored[b]) for a, b in pairs}
    texts = [[one.text for one in side] for side in sides]
    said = {
        (a, b): judge.shares(prompts, (names[a], names[b]), (texts[a], texts[b])) for a, b in pairs
    }
    if any(all(share is None for share in shares) for shares in said.values()):
        raise UserError(
            f"judge={judge.name}: has no answers to these prompts that compare "
            f"{' and '.join(names)}; let people compare these runs on them (rlhf feedback serve)."
        )
    return {
        (a, b): (Side(sides[a], shares, []), Side(sides[b], [_rest(one) for one in shares], []))
        for (a, b), shares in said.items()
    }


def _rest(share: float | None) -> float | None:
    return None if share is None else 1.0 - share


def compared_sides(
    judge: LanguageModelJudge,
    prompts: list[Any],
    ours: list[Completion],
    theirs: list[Completion],
) -> tuple[Side, Side]:
    """Let a language model compare two sides; a verdict that the order decides is a tie.

    Raises:
        UserError: There is no verdict at all.
    """
    texts = [as_answers(prompts, [one.text for one in side]) for side in (ours, theirs)]
    verdicts = judge.compare(prompts, *texts)
    shares = {"one": 1.0, "other": 0.0}
    scores: list[float | None] = [
        None if None in both else shares.get(str(both[0]), 0.5) if both[0] == both[1] else 0.5
        for both in verdicts
    ]
    if all(score is None for score in scores):
        raise UserError(f"judge={judge.name}: no pair got a verdict; name another model.")
    return Side(ours, scores, verdicts), Side(theirs, [*map(_rest, scores)], verdicts)


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
    """What the shares of one judge say of two sides.

    Args:
        shares: The model's share of the win on each prompt, as of `shares_of`.
        ours: The model's completions.
        theirs: The baseline's.
        seed: Of the bootstrap.

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
    """KL of a model from a baseline, from the model's own samples.

    Args:
        logps: The model's log-probabilities of its completions' tokens, one tensor each, nats.
        baseline_logps: The baseline's of the same tokens.

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


def _logps(model: Any, completions: list[Completion], sampling: SamplingSettings) -> list[Tensor]:
    prompts, ids = [c.prompt_ids for c in completions], [c.ids for c in completions]
    size = sampling.batch_size
    return completion_logps(model, prompts, ids, temperature=sampling.temperature, batch_size=size)
