"""What is to be asked: items from a file, and prompts whose completions are sampled meanwhile.

The queue lies in the store, so that it survives a kill; each prompt becomes an item at once or not
at all, and the same prompt, models and seed give the same item.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError, note, one_sentence
from recipes.lib.feedback.arguments import ServeArguments
from recipes.lib.feedback.rows import KINDS, item_id
from recipes.lib.feedback.store import Item, Store
from recipes.lib.runs.files import read_jsonl

NUM_COMPLETIONS = {"pair": 2, "text": 0}  # of the others one, but for the ranking
NUM_TRIES = 3  # draws of a prompt whose completions come out equal or empty
BATCH = 8  # prompts at a time: people wait for the first ones
PAUSE = 0.3  # seconds between looks at an empty queue
REPLY_PAUSE = 0.1  # seconds between looks of the page at a reply
AHEAD = 64  # items that wait to be answered; with more, sampling waits
AGAIN = "-again"  # what the id of an item ends with that is asked a second time

Sampler = Callable[[str, Sequence[Any], int], list[str]]  # model, prompts, seed -> texts
# model, messages, episode, what is given each piece of the text
Talker = Callable[[str, Any, int, Callable[[str], None]], str]


def read_items(script: ServeArguments) -> Iterator[Item]:
    """Ready items of a file: {prompt, completions, kind?, aspects?, gold?} a line.

    Args:
        script: Names the file, the kinds of answers, in turns where a line says nothing, and the
            aspects.

    Returns:
        The items; completions are texts, messages, or mappings of content and run.

    Raises:
        UserError: A line is no item.
    """
    path, kinds, aspects = Path(str(script.items)), script.kinds, script.aspects
    if not path.is_file():
        raise UserError(f"items={path}: is not there; name a .jsonl file of items.")
    try:
        rows = read_jsonl(path)
    except ValueError as error:
        raise UserError(f"items={path}: {one_sentence(error)}.") from error
    for number, row in enumerate(rows):
        place = f"items={path}, line {number + 1}"
        if not isinstance(row, dict) or (not row.get("prompt") and "completions" not in row):
            raise UserError(f"{place}: is no item; give prompt and completions.")
        kind = row.get("kind") or kinds[number % len(kinds)]
        said = [
            {"run": None} | one if isinstance(one, dict) else {"content": one, "run": None}
            for one in row.get("completions", ())
        ]
        least, most = (3, 99) if kind == "rank" else [NUM_COMPLETIONS.get(kind, 1)] * 2
        if kind not in KINDS or not least <= len(said) <= most:
            wanted = f"{least} or more" if kind == "rank" else f"{least}"
            raise UserError(
                f"{place}: kind={kind} has {len(said)} completions; {wanted} are asked of it, and "
                f"kind is one of {', '.join(KINDS)}."
            )
        yield Item(
            id=item_id(row["prompt"], [one["content"] for one in said]),
            prompt=row["prompt"],
            completions=said,
            kind=kind,
            aspects=row.get("aspects") or list(aspects),
            **({"gold": row["gold"]} if "gold" in row else {}),
        )


def with_repeats(items: Iterable[Item], overlap: float, repeat: float, seed: int) -> Iterator[Item]:
    """Have some items answered by two people, and ask some a second time.

    Args:
        items: The items.
        overlap: Share that two people answer.
        repeat: Share that comes again later.
        seed: Of the draws, which are those of an item.

    Returns:
        The items, those that come again at the end.
    """
    again = []
    for item in items:
        draw = random.Random(f"overlap {seed} {item['id']}")
        yield item | {"num_wanted": 2 if draw.random() < overlap else 1}
        if draw.random() < repeat:
            again.append(item | {"id": item["id"] + AGAIN, "num_wanted": 1})
    yield from again


def make_jobs(
    prompts: Iterable[Any],
    models: Sequence[str],
    kinds: Sequence[str],
    aspects: Sequence[str],
    num_completions: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """What is to be sampled for prompts, each of one kind of answer in turns.

    Args:
        prompts: Texts or messages.
        models: Who writes; several take turns, so that a pair of two has one of each.
        kinds: Of the answers that are asked.
        aspects: What is rated.
        num_completions: Of a ranking.
        seed: Of the sampling.

    Returns:
        Jobs for the queue.
    """
    for number, prompt in enumerate(prompts):
        kind = kinds[number % len(kinds)]
        count = num_completions if kind == "rank" else NUM_COMPLETIONS.get(kind, 1)
        names = [models[(number + place) % len(models)] for place in range(count)]
        yield {
            "item": item_id([prompt, kind, seed, number], names),
            "prompt": prompt,
            "models": names,
            "kind": kind,
            "aspects": list(aspects),
        }


def sample_items(jobs: Sequence[dict[str, Any]], sample: Sampler, seed: int) -> Iterator[Item]:
    """Sample the completions of jobs; equal or empty ones are drawn again.

    Args:
        jobs: Of the queue.
        sample: Writes completions.
        seed: Of the sampling.

    Returns:
        Items of those whose completions are there and differ.
    """
    left = list(jobs)
    for attempt in range(NUM_TRIES):
        asked: dict[str, list[tuple[int, int]]] = {}
        for row, job in enumerate(left):
            for place, name in enumerate(job["models"]):
                asked.setdefault(name, []).append((row, place))
        said: list[dict[int, str]] = [{} for _ in left]
        for name, places in asked.items():
            draw = random.Random(f"{seed} {attempt} {left[0]['item']} {name}").getrandbits(32)
            texts = sample(name, [left[row]["prompt"] for row, _ in places], draw)
            for (row, place), text in zip(places, texts, strict=True):
                said[row][place] = text
        rest = []
        for job, texts_of in zip(left, said, strict=True):
            texts = [texts_of[place] for place in range(len(texts_of))]
            if len({text.strip() for text in texts} - {""}) < len(texts):
                rest.append(job)
                continue
            pairs = zip(texts, job["models"], strict=True)
            yield Item(
                id=job["item"],
                prompt=job["prompt"],
                completions=[{"content": text, "run": name} for text, name in pairs],
                kind=job["kind"],
                aspects=job["aspects"],
            )
        left = rest
        if not left:
            return


def fill(
    store: Store,
    sample: Sampler,
    talk: Talker,
    is_wanted: Callable[[], bool],
    *,
    waits: bool,
) -> int:
    """Sample what the queue holds, and perhaps wait for more.

    Args:
        store: The store, with its settings.
        sample: Writes completions.
        talk: Writes a reply in a chat, piece by piece.
        is_wanted: Whether to go on.
        waits: Whether to wait where nothing is left.

    Returns:
        How many items were made.
    """
    made = 0
    while is_wanted():
        counts = store.counts()
        is_ahead = waits and counts["items"] - counts["answered"] >= AHEAD
        jobs = [] if is_ahead else store.next_jobs(BATCH)
        if jobs and "messages" in jobs[0]:
            _reply(store, jobs[0], talk)
            continue
        if not jobs:
            if not waits:
                break
            time.sleep(PAUSE)
            continue
        made += _fill(store, jobs, sample)
    return made


def _fill(store: Store, jobs: Sequence[dict[str, Any]], sample: Sampler) -> int:
    keys = store.settings
    seed = keys["seed"]
    try:
        items = list(sample_items(jobs, sample, seed))
    except UserError as error:  # such as a prompt that is too long
        if len(jobs) > 1:
            return sum(_fill(store, [job], sample) for job in jobs)
        note(f"a prompt is left out: {error}")
        store.tell_job(jobs[0]["item"], state="failed")
        return 0
    store.add_items(with_repeats(items, keys["overlap"], keys["repeat"], seed))
    made = {item["id"] for item in items}
    for job in jobs:
        if job["item"] not in made:  # its completions are equal or empty, however often drawn
            store.tell_job(job["item"], state="failed")
    return len(made)


def _reply(store: Store, job: dict[str, Any], talk: Talker) -> None:
    """Write the replies of a job into the store as they come, for the page to show."""
    texts = [""] * len(job["models"])
    told = time.monotonic()

    def show(place: int, piece: str) -> None:
        nonlocal told
        texts[place] += piece
        if time.monotonic() - told > REPLY_PAUSE:
            store.tell_job(job["item"], texts=texts)
            told = time.monotonic()

    try:
        for place, name in enumerate(job["models"]):
            episode = int(job["item"][:15], 16) + place
            talk(name, job["messages"], episode, functools.partial(show, place))
    except UserError as error:  # such as a context that is full
        store.tell_job(job["item"], texts=texts, error=str(error), state="failed")
        return
    store.tell_job(job["item"], texts=texts, state="done")
