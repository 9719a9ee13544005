"""Completions to be compared: several of a prompt, drawn until they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from recipes.lib.feedback.rows import item_id

if TYPE_CHECKING:
    from recipes.lib.generation.completions import Completion

NUM_TRIES = 3  # draws of a prompt whose completions come out equal or empty

# model, prompts, seed -> completions
Sampler = Callable[[str, Sequence[Any], int], "Sequence[Completion]"]


def sample_sets(
    jobs: Sequence[dict[str, Any]], sample: Sampler, seed: int
) -> dict[int, list[Completion]]:
    """Sample completions for jobs; where some are equal or empty, all of a job are drawn again.

    Args:
        jobs: With their prompt and models.
        sample: Writes completions.
        seed: Of the sampling.

    Returns:
        Completions by the index of the job, in its order; without those that never differed.
    """
    found: dict[int, list[Completion]] = {}
    for attempt in range(NUM_TRIES):
        left = [number for number in range(len(jobs)) if number not in found]
        asked = [(number, name) for number in left for name in jobs[number]["models"]]
        said: dict[str, Iterator[Completion]] = {}
        for place, model in enumerate(dict.fromkeys(name for _, name in asked)):
            prompts = [jobs[number]["prompt"] for number, name in asked if name == model]
            said[model] = iter(sample(model, prompts, seed + 1_000_003 * attempt + place))
        for number in left:
            drawn = [next(said[name]) for name in jobs[number]["models"]]
            if len({one.text.strip() for one in drawn} - {""}) == len(drawn):
                found[number] = drawn
    return dict(sorted(found.items()))


def sampled_item(
    prompt: Any, said: Sequence[Completion], models: Sequence[str], *, held_out: bool
) -> dict[str, Any]:
    """What is asked of sampled completions; nothing trains on answers to what is held out."""
    texts = [one.text for one in said]
    pairs = zip(texts, models, strict=True)
    completions = [{"content": text, "run": name} for text, name in pairs]
    item = {"id": item_id(prompt, texts), "prompt": prompt, "completions": completions}
    return item | ({"held_out": True} if held_out else {})
