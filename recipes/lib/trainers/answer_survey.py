"""What the answers of a run are about, and each of them as numbers; the keys that say how.

Aspects become outputs of the model, ratings levels of a scale, annotators offsets on it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from recipes.lib.config.fields import option
from recipes.lib.data.answers import (
    ANSWERS,
    COMPARISONS,
    OVERALL,
    aspect_of,
    completions_of,
    kind_of,
    kinds_of,
    value_of,
)
from recipes.lib.data.file_rows import Row
from recipes.lib.data.splitting import content_key
from recipes.lib.errors import UserError
from recipes.lib.models.reward_heads import RewardHeads

if TYPE_CHECKING:
    from datasets import Dataset

MOST_LEVELS = 20  # of ratings with cut points between them
Scale = tuple[str, str]  # kind of answer and aspect


@dataclass(kw_only=True)
class AnswerArguments:
    """What becomes of answers."""

    answer_weights: dict[str, float] | None = option(
        None, "Weights of pair, rank, rating and thumb in the loss, such as {rating: 0.5}; else 1."
    )
    rating_loss: str = option(
        "ordinal",
        "Ratings: ordinal (proportional odds, with cut points between the levels) or regression "
        "(squared error of standardized ratings).",
        choices=("ordinal", "regression"),
    )
    label_smoothing: float = option(
        0.0, "Probability that a pair or ranking is the other way round, from 0 to below 0.5."
    )
    ensemble: int = option(1, "Outputs for each aspect, trained on different bootstrapped rows.")
    rater_learning_rate: float = option(
        0.01,
        "Learning rate of what is learned beside the model: cut points of ratings, offsets of "
        "annotators, weights of ties.",
    )


def check_answers(script: AnswerArguments) -> None:
    """Check the keys, before anything is read.

    Raises:
        UserError: A number is out of its range, or there is no such kind.
    """
    for kind, weight in (script.answer_weights or {}).items():
        if kind not in ANSWERS or not weight >= 0:
            raise UserError(
                f"answer_weights={{{kind}: {weight}}}: give numbers from 0 on for some of "
                f"{', '.join(ANSWERS)}."
            )
    if not 0 <= script.label_smoothing < 0.5:
        raise UserError(f"label_smoothing={script.label_smoothing}: give 0 to below 0.5.")
    if script.ensemble < 1:
        raise UserError(f"ensemble={script.ensemble}: give the number of outputs, 1 or more.")


@dataclass
class Survey:
    """What the answers of a run are about.

    Args:
        script: What becomes of them.
        seed: Of bootstrapped rows.
        heads: The outputs that they train.
        levels: How often training rows have each rating, of each scale.
        annotators: How many training rows are of each annotator of a scale.
        tied: Of rankings, how many completions share a rank, and how often.
        is_plain: Whether all rows are pairs about one thing.
    """

    script: AnswerArguments
    seed: int
    heads: RewardHeads
    levels: dict[Scale, Counter[float]] = field(default_factory=dict)
    annotators: Counter[tuple[Scale, str]] = field(default_factory=Counter)
    tied: Counter[int] = field(default_factory=Counter)
    is_plain: bool = False

    @property
    def needs_more(self) -> bool:
        """Whether something is learned beside the scores."""
        return bool(self.levels) or max(self.tied, default=1) > 1

    def is_ordinal(self, scale: Scale) -> bool:
        """Whether there are cut points between the levels of a scale."""
        return scale[0] == "thumb" or self.script.rating_loss == "ordinal"

    def encode(self, row: Row, is_training: bool) -> Row:
        """An answer as numbers.

        Args:
            row: The answer.
            is_training: Whether the row is bootstrapped.
        """
        kind, aspect = str(kind_of(row)), aspect_of(row)
        _, ranks = completions_of(row)
        weight = 1.0 if row.get("weight") is None else row["weight"]
        made: Row = {
            "places": [sorted({*ranks}).index(rank) + 1 for rank in ranks],
            "about": self.heads.aspects.index(aspect),
            "margin": float(row.get("margin") or 0) if kind == "pair" else 0.0,
            "weight": float(weight * (self.script.answer_weights or {}).get(kind, 1.0)),
            "scale": -1,
            "level": 0.0,
            "rater": -1,
            "copies": [1.0] * self.heads.ensemble,
        }
        if kind not in COMPARISONS:
            scale = kind, aspect
            made["scale"], level_of = self.places[scale]
            made["level"] = level_of[value_of(row)]
            made["rater"] = self.raters.get((scale, str(row.get("annotator"))), -1)
        if is_training and self.heads.ensemble > 1:
            import numpy as np

            # By what is judged, so that several answers about it stay together.
            digest = hashlib.sha256(f"{self.seed} {content_key(row)}".encode()).digest()
            draws = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            made["copies"] = draws.poisson(1.0, self.heads.ensemble).astype(float).tolist()
        return made

    @cached_property
    def places(self) -> dict[Scale, tuple[int, dict[float, float]]]:
        """The number of each scale, and what each of its values is in the loss."""
        return {
            scale: (number, _levels(said, self.is_ordinal(scale)))
            for number, (scale, said) in enumerate(self.levels.items())
        }

    @cached_property
    def raters(self) -> dict[tuple[Scale, str], int]:
        """The number of each annotator of a scale."""
        return {who: number for number, who in enumerate(self.annotators)}


def survey_answers(
    known: Dataset, test: Dataset | None, script: AnswerArguments, seed: int
) -> Survey:
    """Find out what the answers of a run are about.

    Args:
        known: Training rows.
        test: Test rows, whose aspects and ratings count, too.
        script: What becomes of them.
        seed: Of bootstrapped rows.

    Returns:
        The survey.

    Raises:
        UserError: No training row orders anything, or there are too many different ratings.
    """
    names = [{*rows.column_names} for rows in (known, test) if rows is not None]
    if all(kinds_of(some) == ["pair"] and "aspect" not in some for some in names):
        return Survey(script, seed, RewardHeads((OVERALL,), script.ensemble), is_plain=True)
    aspects, found = Counter[str](), Survey(script, seed, RewardHeads())
    for is_training, rows in ((True, known), (False, test or ())):
        for row in rows:
            scale = str(kind_of(row)), aspect_of(row)
            aspects[scale[1]] += 1
            if scale[0] in COMPARISONS:
                for size in Counter(completions_of(row)[1]).values():
                    found.tied[size] += is_training
                continue
            said = found.levels.setdefault(scale, Counter())
            said[value_of(row)] += is_training
            if row.get("annotator") is not None:
                found.annotators[scale, str(row["annotator"])] += is_training
    orders = any(len({*completions_of(row)[1]}) > 1 for row in known)
    if not orders and not any(len(+said) > 1 for said in found.levels.values()):
        raise UserError(
            "dataset_name: every training row is a tie or has the same value, and from those no "
            "order can be learned; collect answers that tell better from worse."
        )
    for scale, said in found.levels.items():
        if found.is_ordinal(scale) and len(said) > MOST_LEVELS:
            raise UserError(
                f"rating_loss=ordinal: the ratings of {scale[1]} have {len(said)} different values "
                f"and at most {MOST_LEVELS} can have cut points; set rating_loss=regression."
            )
    ordered = sorted(aspects, key=lambda aspect: (aspect != OVERALL, aspect))
    found.heads = RewardHeads(tuple(ordered), script.ensemble)
    return found


def _levels(said: Counter[float], is_ordinal: bool) -> dict[float, float]:
    """Places among the values, or values standardized as those of training rows are."""
    if is_ordinal:
        return {value: float(place) for place, value in enumerate(sorted(said))}
    values = [*said.elements()]
    mean, spread = fmean(values), pstdev(values) or 1.0
    return {value: (value - mean) / spread for value in said}
