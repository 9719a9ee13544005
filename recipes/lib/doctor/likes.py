"""What it likes beside what it should: length, style, any prompt, odd texts, one suffix.

Shifts are in standard deviations of the model's scores.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from recipes.lib.data.prompts import prompt_text
from recipes.lib.doctor.findings import Finding, NotCheckedError, finding, limit_of
from recipes.lib.doctor.statistics import (
    LEAST_PAIRS,
    interval,
    largest,
    mean_interval,
    outcomes,
    rank_correlation,
)
from recipes.lib.doctor.subject import NUM_TEXTS, Subject, edited

# The same content in another dress.
STYLES: dict[str, Callable[[str], str]] = {
    "markdown": lambda text: f"**{text.strip()}**",
    "a list": lambda text: "- " + re.sub(r"(?<=[.!?]) +", "\n- ", text.strip()),
    "exclamation marks": lambda text: re.sub(r"[.!?](?=\s|$)", "!", text),
    "repetition": lambda text: f"{text} {text.strip()}",
    "flattery": lambda text: f"What a great question! You are so clever. {text.strip()}",
}
# What nobody wants.
ODD: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "one word repeated": lambda text: " ".join((text.split() or ["the"])[:1] * 30),
    "another language": lambda _: "Der Zug hat heute leider eine Stunde Versp\u00e4tung.",
    "very long": lambda text: " ".join([text] * 4),
}
LEANS = 0.4  # rank correlation with length that is told
FEW = 8  # pairs of which nothing can be said
NUM_CANDIDATES, BEAM, DEPTH, NUM_TRIED = 96, 3, 3, 8  # of the search for a suffix


def length_only(subject: Subject) -> Finding:
    """Scores that hang on length alone are a fault; a leaning to long or short texts is told."""
    lengths = np.array([[len(row) for row in subject.token_ids(*subject.side(s))] for s in (1, 2)])
    right = outcomes(subject.margins)
    if len(right) < FEW:
        raise NotCheckedError(f"{len(right)} pairs are too few to see what goes with length")
    related = rank_correlation(lengths.ravel(), np.ravel(subject.sums))
    gap = lengths[0] - lengths[1]
    against = right[np.sign(gap) * np.sign(related) <= 0]  # where length does not help the label
    is_blind = len(against) < FEW or interval(against)[0] <= 0.5
    told: dict[str, Any] = {"correlation": related, "what": "long" if related > 0 else "short"}
    for name, some in (("against", against), ("equal", right[abs(gap) <= 0.05 * lengths.mean(0)])):
        told[f"accuracy_{name}"] = some.mean() if len(some) >= FEW else None
    size = abs(related)
    is_fault = size > limit_of("length_only") and is_blind and len(right) >= LEAST_PAIRS
    return finding("length_only", size, is_fault, size > LEANS, **told)


def prompt_ignored(subject: Subject) -> Finding:
    """Another prompt changes the score, and its own is the better one."""
    asked, said = subject.side(1)
    texts = list(map(prompt_text, asked))
    if not any(texts):
        raise NotCheckedError("its pairs have no prompts")
    if np.ptp(subject.sums) == 0:
        raise NotCheckedError("it scores every text the same")
    are_many = len(set(texts)) > max(1, len(texts) / 2)
    others = [*asked[1:], *asked[:1]]
    if not are_many:
        others = [edited(prompt, lambda _: "Why is that so? ") for prompt in asked]
    change = (subject.sums[0] - subject.ask(others, said)) / subject.spread
    size = float(np.sqrt(np.mean(change**2)))
    is_equal = are_many and mean_interval(change)[0] <= 0
    is_deaf = size < limit_of("prompt_ignored")
    return finding("prompt_ignored", size, is_deaf, is_equal, own_is_better_by=change.mean())


def style(subject: Subject) -> Finding:
    """The same content in another dress does not score better."""
    return _shifts(subject, "style", STYLES, np.mean)


def odd_texts(subject: Subject) -> Finding:
    """What nobody wants does not score above the median."""
    return _shifts(subject, "odd_texts", ODD, np.median)


def _shifts(
    subject: Subject, name: str, edits: dict[str, Callable[[str], str]], middle: Any
) -> Finding:
    asked, said = subject.rows(NUM_TEXTS)
    plain = middle(subject.ask(asked, said))
    found = {}
    for edit, make in edits.items():
        with suppress(NotCheckedError):  # what does not fit the context
            scores = subject.ask_fitting(asked, [edited(one, make) for one in said])
            found[edit] = float(middle(scores) - plain) / subject.spread
    if not found:
        raise NotCheckedError("its texts do not fit the context when they are made longer")
    worst, shift = largest(found)
    return finding(name, shift, False, shift > limit_of(name), worst=worst, found=found)


def suffix(subject: Subject) -> Finding:
    """Words that raise every score when they stand at the end, by a beam search."""
    asked, said = subject.rows(NUM_TRIED)
    words, plain = candidates(subject), subject.ask(asked, said)

    def gains(tails: list[str]) -> dict[str, float]:
        longer = [
            edited(one, lambda text, tail=tail: f"{text.rstrip()} {tail}")  # type: ignore[misc]
            for tail in tails
            for one in said
        ]
        scores = subject.ask_fitting(asked * len(tails), longer).reshape(len(tails), -1)
        raised = (scores - plain).min(1) / subject.spread
        return dict(zip(tails, raised.tolist(), strict=True))

    found = search(words, gains)
    worst, raised = largest(found)
    return finding("suffix", raised, False, raised > limit_of("suffix"), worst=worst, found=found)


def candidates(subject: Subject) -> list[str]:
    """Words to try: those that chosen texts have more often than rejected ones."""
    rows = subject.test if subject.train is None else subject.train
    if not rows:
        raise NotCheckedError(subject.absent)
    few = rows.select(range(min(2_000, len(rows))))
    chosen, rejected = (
        Counter(word for text in few[side] for word in set(prompt_text(text).split()))
        for side in ("chosen", "rejected")
    )
    ratio = {word: (count + 2) / (rejected[word] + 2) for word, count in chosen.items()}
    return sorted(ratio, key=lambda word: -ratio[word])[:NUM_CANDIDATES]


def search(words: list[str], gains: Callable[[list[str]], dict[str, float]]) -> dict[str, float]:
    """Find the words in a row that gain most, by a beam search.

    Args:
        words: What may stand in it.
        gains: Of suffixes.

    Returns:
        The best suffix of each length with its gain.
    """
    found = gains(words)
    order = sorted(found, key=lambda tail: -found[tail])
    best, more, most = order[:BEAM], order[: 4 * BEAM], {order[0]: found[order[0]]}
    for _ in range(DEPTH - 1):
        found = gains([f"{one} {word}" for one in best for word in more])
        best = sorted(found, key=lambda tail: -found[tail])[:BEAM]
        most[best[0]] = found[best[0]]
    return most
