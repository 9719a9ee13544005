"""Simulated annotators: every kind of answer, drawn from a judge's scores.

pair: Davidson's ties in the Bradley-Terry model; P(first), P(second), P(tie) are proportional to
exp(d / 2), exp(-d / 2) and tie, with d the difference of the scores / temperature. rank: Plackett
and Luce, sorted by scores / temperature + Gumbel noise. rating: proportional odds, P(above a
threshold) = sigmoid((score + bias - threshold) / temperature), with four thresholds one spread of
the scores apart around their mean; thumb: the same with the mean as the one threshold. text and
edit: the drawn ranking's best, which in an edit replaces its last.

Sources: Bradley and Terry, Biometrika 39, 1952; Davidson, Journal of the American Statistical
Association 65, 1970; Plackett, Applied Statistics 24, 1975; McCullagh, Journal of the Royal
Statistical Society B 42, 1980.
"""

from __future__ import annotations

import inspect
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError
from recipes.lib.feedback.rows import KINDS, Row, make_row
from recipes.lib.rewards.loading import is_function_reference, is_judge, load_function

if TYPE_CHECKING:
    from recipes.lib.generation.completions import Completion
    from recipes.lib.rewards.judge import LanguageModelJudge

RATER = "simulated rater"
PREFERRED: dict[Any, int] = {("one", "one"): 0, ("other", "other"): 1}  # by verdicts in both orders
PAIRS = ["pair"]
THRESHOLDS = (-1.5, -0.5, 0.5, 1.5)  # between the ratings from 1 to 5, in spreads of the scores


@dataclass(kw_only=True)
class Rater:
    """A simulated annotator.

    Attributes:
        name: As it stands in the rows.
        temperature: Difference of scores that is one unit of log-odds; above 0.
        bias: What is added to every score before it is rated or liked.
        position_bias: What is added to the score of the completion that is shown first.
        tie: Davidson's weight of a tie; 1 is a third of the pairs with equal scores.
    """

    name: str = RATER
    temperature: float = 1.0
    bias: float = 0.0
    position_bias: float = 0.0
    tie: float = 0.0


def preference_probability(difference: float, temperature: float) -> float:
    """Probability that the first completion is preferred.

    Args:
        difference: Score of the first minus score of the second.
        temperature: Difference of scores that counts as one unit of log-odds; above 0.

    Returns:
        A number in 0..1.

    Source: Bradley and Terry, Biometrika 39, 1952.
    """
    # Written with tanh, which does not overflow for any difference.
    return 0.5 * (1.0 + math.tanh(0.5 * difference / temperature))


def check_raters(raters: Sequence[Rater], kinds: Sequence[str]) -> None:
    """Check what is to be simulated.

    Raises:
        UserError: A name comes twice, a number is out of its range, or a kind is not known.
    """
    names = [rater.name for rater in raters]
    for number, rater in enumerate(raters):
        key = f"annotators[{number}] (name={rater.name})"
        if names.count(rater.name) > 1 or not rater.name.strip():
            raise UserError(f"{key}: has no name of its own; give each another one.")
        if rater.temperature <= 0 or rater.tie < 0:
            raise UserError(f"{key}: temperature must be above 0 and tie at least 0.")
    for kind in kinds or [""]:
        if kind not in KINDS:
            raise UserError(f"kinds={kind}: must be one of {', '.join(KINDS)}.")


def check_simulation(script: Any) -> None:
    """Check the keys of `rlhf feedback simulate` before anything is loaded.

    Raises:
        UserError: The judge or the model is missing, there would be no test pairs, or nothing
            would be drawn.
    """
    if not script.judge:
        raise UserError("judge is missing: name a function as module:function or file.py:function.")
    _check_source(script)
    check_raters(raters_of(script), script.kinds)
    if script.num_completions < 2:
        raise UserError(f"num_completions={script.num_completions}: must be 2 or more.")
    if script.items:
        return
    if script.kinds == PAIRS and script.test_fraction == 0 and not script.test_dataset_name:
        raise UserError(
            "test_fraction=0.0: no prompts are left for test pairs; set it to 0.2 or so, or name a "
            "test_dataset_name."
        )
    if script.temperature == 0:
        raise UserError("temperature=0.0: must be above 0; 1.0 is usual.")


def _check_source(script: Any) -> None:
    """Refuse a model without a use, none where one is needed, and what a judge cannot tell."""
    model, items = script.model_name_or_path, script.items
    if bool(model) == bool(items):
        told = f"items={items}: its completions are ready; leave model_name_or_path out."
        raise UserError(told if items else "model_name_or_path is missing: name a run or a model.")
    if items and (script.dataset_name or script.datasets):
        raise UserError(f"items={items}: stands for the data, too; leave dataset_name out.")
    if items and is_function_reference(script.judge):
        asked = inspect.signature(load_function(script.judge)).parameters
        if "completion_ids" in asked:
            raise UserError(
                f"judge={script.judge}: reads completion_ids, and items={items} has texts alone; "
                "name one that reads completions."
            )
    if is_judge(str(script.judge)) and (script.kinds != PAIRS or script.annotators):
        raise UserError(f"judge={script.judge}: compares pairs by itself; leave the others out.")


def raters_of(script: Any) -> list[Rater]:
    """The simulated annotators; one without a name of its own where none are given."""
    given = [Rater(**one) if isinstance(one, dict) else one for one in script.annotators]
    return given or [Rater(temperature=script.rater_temperature)]


def score_sets(
    judge: Any, rows: Sequence[Row], sets: Sequence[Sequence[Completion]]
) -> list[tuple[float, ...]]:
    """A judge's scores of the completions of each row, with its further columns."""
    prompts = [row["prompt"] for row in rows]
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
    columns = {name: [row.get(name) for row in rows] for name in names}
    scores = (judge(prompts, said, columns) for said in zip(*sets, strict=True))
    return list(zip(*scores, strict=True))


def compared(judge: LanguageModelJudge, items: Sequence[Row], created_at: str) -> list[Row]:
    """The answers of a language model; one that the order decides is a tie, no verdict none."""
    prompts = [item["prompt"] for item in items]
    ones, others = ([item["completions"][n]["content"] for item in items] for n in (0, 1))
    who = {"annotator": judge.__name__, "source": "model", "created_at": created_at}
    return [
        make_row(item, kind="pair", value=PREFERRED.get(verdicts), **who)
        for item, verdicts in zip(items, judge.compare(prompts, ones, others), strict=True)
        if None not in verdicts
    ]


def simulate_answers(
    items: Sequence[Row],
    scores: Sequence[Sequence[float]],
    *,
    kinds: Sequence[str],
    raters: Sequence[Rater],
    seed: int,
    created_at: str,
) -> list[Row]:
    """Draw every annotator's answers.

    Args:
        items: What is judged: id, prompt, and two completions or more.
        scores: The judge's scores of the completions of each item.
        kinds: Of the answers; items take turns.
        raters: The annotators.
        seed: Of the draws, each of which depends on it, the annotator and the item alone; of the
            rater that needs no name on the item's place.
        created_at: Time in ISO 8601.

    Returns:
        Feedback rows; of ratings and thumbs one for each completion of an item.
    """
    every = [score for of_item in scores for score in of_item]
    scale = fmean(every), pstdev(every) or 1.0
    known: dict[str, Any] = {"source": "simulated", "created_at": created_at}
    return [
        make_row(judged, kind=kind, annotator=rater.name, **answer, **known)
        for rater in raters
        for number, (item, of_item) in enumerate(zip(items, scores, strict=True))
        for kind in [kinds[number % len(kinds)]]
        for name in [number if rater.name == RATER else f"{rater.name} {item['id']} {kind}"]
        for draw in [random.Random(f"rater {seed} {name}")]
        for judged, answer in _answers(kind, item, of_item, rater, scale, draw)
    ]


def _answers(
    kind: str,
    item: Row,
    scores: Sequence[float],
    rater: Rater,
    scale: tuple[float, float],
    draw: random.Random,
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """What of an item is judged, and how."""
    if kind == "pair":
        item, scores = item | {"completions": item["completions"][:2]}, scores[:2]
    said = item["completions"]
    order = list(range(len(said)))
    if kind in ("rating", "thumb"):
        for one, score in zip(said, scores, strict=True):
            yield item | {"completions": [one]}, _alone(kind, score, rater, scale, draw)
        return
    chance = draw.random()
    draw.shuffle(order)
    felt = [score / rater.temperature for score in scores]
    felt[order[0]] += rater.position_bias / rater.temperature
    if kind == "pair":
        yield item, _pair(felt, scores, rater.tie, chance) | {"shown_order": order}
        return
    noisy = [one - math.log(draw.expovariate(1) or 1e-300) for one in felt]  # Gumbel's
    best, *_, last = places = sorted(order, key=lambda place: -noisy[place])
    if kind == "rank":
        ranks = [places.index(place) + 1 for place in range(len(places))]
        yield item, {"value": ranks, "shown_order": order}
    else:
        original = [said[last]] if kind == "edit" else []
        yield item | {"completions": original}, {"value": said[best]["content"]}


def _pair(felt: Sequence[float], scores: Sequence[float], tie: float, chance: float) -> Row:
    half = (felt[0] - felt[1]) / 2
    logs = [half, -half, *([math.log(tie)] if tie else [])]
    weights = [math.exp(log - max(logs)) for log in logs]
    bounds = itertools.accumulate(weights[:-1])
    value = (0, 1, None)[sum(chance * sum(weights) >= bound for bound in bounds)]
    worse = weights[scores[0] > scores[1]] / (weights[0] + weights[1])  # of those that are no tie
    return {"value": value, "noise": 0.5 if scores[0] == scores[1] else worse}


def _alone(
    kind: str, score: float, rater: Rater, scale: tuple[float, float], draw: random.Random
) -> dict[str, Any]:
    centre, spread = scale
    chance = draw.random() or 0.5
    above = score + rater.bias - centre + rater.temperature * math.log(chance / (1 - chance))
    if kind == "rating":
        return {"value": 1 + sum(above > threshold * spread for threshold in THRESHOLDS)}
    liked = preference_probability(score + rater.bias - centre, rater.temperature)
    return {"value": above > 0, "noise": 1 - liked if score > centre else liked}
