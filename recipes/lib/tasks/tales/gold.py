"""The gold score: what the simulated rater likes in a tale. No training stage may read it.

It reads free text of any kind. Most of it hangs on the prompt and on order, which a bag of words
cannot see. What hardly comes up in the SFT model's tales, such as an adjective behind an adjective,
words heaped up, or sentences that are none, costs; a reward model has seen little of it.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from recipes.lib.tasks.tales.words import ANIMALS, DEEDS, HAPPY, OBJECTS, PLACES, PLAIN, SAD, WARM

_WORD = re.compile(r"[^\W\d_]+")
_ADJECTIVES = frozenset(WARM + PLAIN)
FACT, HELP, MOOD = 0.6, 0.6, 0.6  # gained or lost
LEAD, WARM_WORD, THING_BACK = 0.25, 0.25, 0.3


def gold_scores(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """Score each completion as the answer to its prompt: the judge that configs name."""
    return [
        gold_score(_text(prompt), _text(said))
        for prompt, said in zip(prompts, completions, strict=True)
    ]


def _text(said: Any) -> str:
    return said if isinstance(said, str) else " ".join(turn["content"] for turn in said)


def gold_score(prompt: str, completion: str) -> float:
    """Score one tale."""
    return sum(gold_parts(prompt, completion).values())


def gold_parts(prompt: str, completion: str) -> dict[str, float]:
    """What the score is the sum of, by name."""
    sentences = [_words(part) for part in re.split(r"[.!?]+", completion)]
    sentences = [words for words in sentences if words]
    asked = _words(prompt)
    words = [word for sentence in sentences for word in sentence]
    parts = {}
    for name, kind in (("hero", ANIMALS), ("deed", DEEDS), ("thing", OBJECTS), ("place", PLACES)):
        fact = _first(asked, kind)
        parts[name] = 0.0 if fact is None else FACT if _first(words, kind) == fact else -FACT
    thing = _first(words, OBJECTS)
    parts["back"] = THING_BACK * (
        thing is not None and len(sentences) > 1 and thing in sentences[-1]
    )
    parts["help"] = _help_part(sentences)
    parts["mood"] = _mood_part(words)
    parts["lead"] = LEAD * min(sum(map(_is_led_by_animal, sentences)), 4)
    parts["style"] = _style_part(sentences, completion)
    return parts


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _first(words: Sequence[str], kind: Collection[str]) -> str | None:
    return next((word for word in words if word in kind), None)


def _help_part(sentences: list[list[str]]) -> float:
    hero = _first([word for words in sentences for word in words], ANIMALS)
    for words in sentences:
        if hero is None or _first(words, ANIMALS) != hero:
            continue
        pairs = set(pairwise(words))
        if ("gave", "help") in pairs:
            return HELP
        if ("got", "help") in pairs:
            return -HELP
    return 0.0


def _mood_part(words: list[str]) -> float:
    moods = [word in HAPPY for word in words if word in HAPPY + SAD]
    return MOOD * (moods[-1] - moods[0]) if moods else 0.0


def _is_led_by_animal(words: list[str]) -> bool:
    if words[0] not in {"a", "an", "the"}:
        return False
    return next((word in ANIMALS for word in words[1:] if word not in _ADJECTIVES), False)


def _style_part(sentences: list[list[str]], completion: str) -> float:
    words = [word for sentence in sentences for word in sentence]
    num_warm = sum(word in WARM for word in words)
    counts = Counter(words)
    num_heaped = sum(max(0, counts[word] - 2) for word in OBJECTS + PLACES + HAPPY + SAD)
    pairs = [pair for sentence in sentences for pair in pairwise(sentence)]
    num_doubled = sum(a in _ADJECTIVES and b in _ADJECTIVES for a, b in pairs)
    num_repeated = len(sentences) - len({tuple(sentence) for sentence in sentences})
    score = WARM_WORD * min(num_warm, 3) - 0.5 * max(0, num_warm - 3)
    score -= 0.5 * num_doubled + 0.7 * num_repeated + 0.5 * num_heaped
    score -= 0.5 * max(0, len(sentences) - 5) + 0.5 * max(0, 3 - len(sentences))
    return score - (0.0 if completion.rstrip().endswith((".", "!", "?")) else 0.5)
