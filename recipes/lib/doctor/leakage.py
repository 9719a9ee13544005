"""Do test pairs stand in the training rows, word for word, nearly, or with their prompts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from recipes.lib.data.prompts import prompt_text
from recipes.lib.doctor.findings import Finding, NotCheckedError, finding, limit_of
from recipes.lib.doctor.statistics import Array
from recipes.lib.doctor.subject import Subject, split_pair

GRAM = 5  # words in a row
FEW = 2  # leaked pairs, of which data of the wild have one or two
NEARLY = 0.8  # share of a text's grams
MOST_ROWS = 20_000  # training rows that are read
WORD = re.compile(r"\w+")


def leaked_rows(subject: Subject) -> Finding:
    """No test pair is a training pair, case and spaces aside."""
    known = set(map(_key, _train(subject)))
    is_known = np.array([_key(pair) in known for pair in subject.pairs])
    share, is_much = is_known.mean(), is_known.sum() > FEW
    return finding("leaked_rows", share, is_much and share > limit_of("leaked_rows"), share > 0)


def _key(pair: tuple[Any, ...]) -> tuple[str, ...]:
    prompt, *sides = map(_plain, pair)
    return (prompt, *sorted(sides))


def _plain(text: Any) -> str:
    return " ".join(prompt_text(text).lower().split())


def near_duplicates(subject: Subject) -> Finding:
    """No training text holds nearly all word 5-grams of a test text."""
    trains = (prompt_text(side) for pair in _train(subject) for side in pair[1:])
    held = containment([prompt_text(side) for pair in subject.pairs for side in pair[1:]], trains)
    if len(held) < len(subject.pairs):
        raise NotCheckedError(f"most texts are shorter than {GRAM} words")
    high, share = float(np.quantile(held, 0.95)), float(np.mean(held > NEARLY))
    is_fault, median = high > limit_of("near_duplicates"), float(np.median(held))
    return finding("near_duplicates", high, is_fault, share > 0.01, share=share, median=median)


def prompts_on_both_sides(subject: Subject) -> Finding:
    """Prompts on both sides of the split; a remark, since some tasks have few prompts."""
    asked = [_plain(prompt) for prompt, _, _ in subject.pairs]
    known = {_plain(prompt) for prompt, _, _ in _train(subject)}
    if not any(asked):
        raise NotCheckedError("its pairs have no prompts")
    if len(set(asked)) <= len(asked) / 2:
        raise NotCheckedError("most pairs are asked the same")
    share = np.mean([prompt in known for prompt in asked])
    return finding("prompts_on_both_sides", share, False, share > limit_of("prompts_on_both_sides"))


def _train(subject: Subject) -> Iterator[tuple[Any, Any, Any]]:
    if not subject.pairs or subject.train is None:
        raise NotCheckedError("the training rows are not there")
    rows = subject.train
    return map(split_pair, rows.select(range(min(MOST_ROWS, len(rows)))))


def containment(tests: Sequence[str], trains: Iterable[str]) -> Array:
    """Of each text, the largest share of its word 5-grams that one other text holds.

    Args:
        tests: Texts; those shorter than a gram are left out.
        trains: Others.

    Returns:
        A share in 0..1 for each text that is left.

    Source: Brown et al., Language Models are Few-Shot Learners, 2020, appendix C, has the overlap
        of word n-grams with all other texts; here it is with one.
    """
    grams = [own for text in tests if (own := _grams(text))]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, own in enumerate(grams):
        for gram in own:
            holders[gram].append(number)
    most = np.zeros(len(grams))
    for text in trains:
        shared = Counter(number for gram in _grams(text) for number in holders.get(gram, ()))
        for number, count in shared.items():
            most[number] = max(most[number], count / len(grams[number]))
    return most


def _grams(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return {tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)}
