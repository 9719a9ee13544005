"""What it has learned: more than guessing, from right labels, with its end token, and how sure.

All but the end token from the margins of pairs that it was not trained on.
"""

from __future__ import annotations

import numpy as np

from recipes.lib.data.answers import aspect_of
from recipes.lib.data.prompts import prompt_text
from recipes.lib.doctor.findings import Finding, NotCheckedError, finding, limit_of
from recipes.lib.doctor.statistics import (
    LEAST_PAIRS,
    Array,
    interval,
    largest,
    mean_interval,
    outcomes,
)
from recipes.lib.doctor.subject import Subject, split_pair, spread
from recipes.lib.evaluation.calibration import calibration_error, reliability, suitable_bins, wilson
from recipes.lib.evaluation.pair_scores import bag_of_words_accuracy

GUESS = 0.5
SURELY_RIGHT = 0.7  # an accuracy that labels do not allow of which 30 % are wrong
SURELY_LITTLE = 0.6  # an accuracy below which it may be stopped, where the interval holds guessing
LEAST_WIDE = LEAST_PAIRS // 5  # with the widest margins
MOST_COUNTED = 2_000  # training rows that the bag of words reads


def learned_nothing(subject: Subject) -> Finding:
    """The accuracy's interval lies above guessing, and above what needs no model."""
    right = outcomes(subject.margins)
    low, high = interval(right)
    longer = [len(prompt_text(c)) - len(prompt_text(r)) for _, c, r in subject.pairs]
    known = {"length alone": float(outcomes(np.array(longer)).mean())}
    if (words := _accuracy_of_words(subject)) is not None:
        known["a bag of words"] = words
    best, accuracy = largest(known)
    says_little = low <= GUESS
    is_fault = says_little and high < SURELY_LITTLE and len(right) >= LEAST_PAIRS
    told = {"accuracy": right.mean(), "pairs": len(right), "high": high, "others": known}
    is_told = says_little or accuracy > high
    return finding("learned_nothing", low, is_fault, is_told, best=best, **told)


def _accuracy_of_words(subject: Subject) -> float | None:
    if subject.train is None or subject.test is None:
        return None
    few = subject.train.select(range(min(MOST_COUNTED, len(subject.train))))
    return float(bag_of_words_accuracy(few, subject.test.select(subject.places)))


def wrong_labels(subject: Subject) -> Finding:
    """Where the margin is widest nearly every label agrees; else labels are wrong.

    A column `noise` says how often a label is wrong, and how many then are no surprise. Labels that
    a bag of words orders well are not what is wrong.
    """
    right = outcomes(subject.margins)
    number, limit = len(right) // 5, limit_of("wrong_labels")
    if number < LEAST_WIDE:
        raise NotCheckedError(f"{len(right)} pairs are too few to look at the widest margins")
    if interval(right)[0] <= GUESS:
        raise NotCheckedError("it orders the pairs no better than guessing")
    wide = np.argsort(-np.abs(subject.margins))[:number]
    test = subject.test
    if test is not None and "noise" in test.column_names:
        limit = min(limit, 0.9 - float(np.array(test["noise"])[subject.places][wide].mean()))
    high, agreed = interval(right[wide])[1], right[wide].mean()
    is_fault = high < limit
    if is_fault and (words := _accuracy_of_words(subject)) is not None:
        is_fault = wilson(round(words * len(right)), len(right))[0] <= SURELY_RIGHT
    told = {"agreed": agreed, "pairs": number}
    return finding("wrong_labels", high, is_fault, agreed < limit, limit, **told)


def no_eos(subject: Subject) -> Finding:
    """It was trained with the end token that it is asked with: without one it tells less.

    Of its own training pairs, where these are there: it has seen each of them where it reads.
    """
    scorer, rows = subject.scorer, subject.train if subject.is_own else None
    if not rows:
        raise NotCheckedError("the pairs that it was trained on are not there")
    if scorer.tokenizer.eos_token_id == scorer.model.config.get_text_config().pad_token_id:
        raise NotCheckedError("its end token is its padding, which it never reads")
    asked_of = [rows[place] for place in spread(len(rows))]
    prompts, *sides = zip(*map(split_pair, asked_of), strict=True)
    pairs = zip(asked_of, *(subject.token_ids(prompts, side) for side in sides), strict=True)
    room = subject.context or 2**30
    kept = [one for one in pairs if max(map(len, one[1:])) <= room]  # others no training reads
    some, ids = [one[0] for one in kept], [[one[side] for one in kept] for side in (1, 2)]
    if len(kept) < LEAST_PAIRS:
        raise NotCheckedError(f"{len(kept)} pairs are too few to tell what the end token does")
    if any(row[1:][-1:] != [scorer.tokenizer.eos_token_id] for side in ids for row in side):
        raise NotCheckedError("its rows do not end in the end token")
    names = scorer.heads.aspects
    own = [names.index(about) if (about := aspect_of(row)) in names else 0 for row in some]

    def margins(read: list[list[list[int]]]) -> Array:
        scores = [scorer.score_tokens(side)[range(len(own)), own].numpy() for side in read]
        return np.asarray(scores[0] - scores[1])

    asked, without = margins(ids), margins([[row[:-1] for row in side] for side in ids])
    gain = np.logaddexp(0, -without) - np.logaddexp(0, -asked)
    tells_less = outcomes(asked).mean() < outcomes(without).mean()
    # A head that is random tells nothing either way.
    is_sure = mean_interval(gain)[1] < 0 and interval(outcomes(without))[0] > GUESS
    is_fault = is_sure and tells_less and gain.mean() < limit_of("no_eos")
    return finding("no_eos", gain.mean(), is_fault, gain.mean() < 0 and tells_less)


def calibration(subject: Subject) -> Finding:
    """The sigmoid of a margin is about the share of such pairs that it orders rightly."""
    margins = subject.margins.tolist()
    bins = suitable_bins(len(margins))
    if not bins:
        raise NotCheckedError(f"{len(margins)} pairs are too few for a reliability diagram")
    error = calibration_error(reliability(margins, bins))
    noise = 0.4 * (bins / len(margins)) ** 0.5  # mean |z| / 2 of a share of so many pairs
    limit = limit_of("calibration") + noise
    return finding("calibration", error, False, error > limit, limit)
