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
from typing import Any, NoReturn

from recipes.lib.errors import UserError, note, one_sentence
from recipes.lib.feedback.arguments import AskArguments, ServeArguments
from recipes.lib.feedback.rows import KINDS, as_completions, item_id, make_row, without_halves
from recipes.lib.feedback.sampling import Sampler, sample_sets
from recipes.lib.feedback.store import Item, Store
from recipes.lib.runs.files import read_jsonl

NUM_COMPLETIONS = {"pair": 2, "text": 0}  # of the others one, but for the ranking
BATCH = 8  # prompts at a time: people wait for the first ones
PAUSE = 0.3  # seconds between looks at an empty queue
REPLY_PAUSE = 0.1  # seconds between looks of the page at a reply
AHEAD = 64  # items that wait to be answered; with more, sampling waits

# model, messages, episode, what is given each piece of the text
Talker = Callable[[str, Any, int, Callable[[str], None]], str]


def read_items(script: ServeArguments) -> Iterator[Item]:
    """Ready items of a file: {prompt, completions, kind?, aspects?, gold?, held_out?} a line.

    Args:
        script: Names the file, the kinds of answers, in turns where a line says nothing, and the
            aspects.

    Returns:
        The items; completions are texts, messages, or mappings of content and run.

    Raises:
        UserError: A line is no item.
    """
    path = Path(str(script.items))
    if not path.is_file():
        raise UserError(f"items={path}: is not there; name a .jsonl file of items.")
    try:
        rows = without_halves(read_jsonl(path))
    except ValueError as error:
        raise UserError(f"items={path}: {one_sentence(error)}.") from error
    for number, row in enumerate(rows):
        place = f"items={path}, line {number + 1}"
        if not isinstance(row, dict) or not row.get("prompt"):
            raise UserError(f"{place}: is no item; give prompt and completions.")
        kind = row.get("kind") or script.kinds[number % len(script.kinds)]
        said = as_completions(row.get("completions", ()))
        least, most = (3, 99) if kind == "rank" else [NUM_COMPLETIONS.get(kind, 1)] * 2
        if kind not in KINDS or not least <= len(said) <= most:
            wanted = f"{least} or more" if kind == "rank" else f"{least}"
            raise UserError(
                f"{place}: kind={kind} has {len(said)} completions; {wanted} are asked of it, and "
                f"kind is one of {', '.join(KINDS)}."
            )
        aspects = row.get("aspects") or script.aspects
        name = item_id([row["prompt"], kind, aspects], [one["content"] for one in said])
        item = {"id": name, "prompt": row["prompt"], "completions": said, "kind": kind}
        try:
            _check(item, row.get("gold"))
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        known = {key: row[key] for key in ("gold", "held_out") if key in row}
        yield item | {"aspects": aspects} | known


def _check(item: Item, gold: Any) -> None:
    """Make the row that an answer would make, so that nobody's answer is refused."""
    about = item["completions"] if item["kind"] in ("pair", "rank") else item["completions"][:1]
    answer: Any = {"kind": item["kind"], "value": gold, "weight": float(gold is not None)}
    make_row(item | {"completions": about}, annotator="gold", source="human", **answer)


def with_repeats(items: Iterable[Item], keys: dict[str, Any]) -> Iterator[Item]:
    """Have some items answered by two people, and ask some a second time.

    Args:
        items: The items.
        keys: overlap, the share that two people answer; repeat, the share that comes again; seed,
            of the draws, which are those of an item.

    Returns:
        The items, those that come again at the end.
    """
    again = []
    for item in items:
        draw = random.Random(f"overlap {keys['seed']} {item['id']}")
        yield item | {"num_wanted": 2 if draw.random() < keys["overlap"] else 1}
        if draw.random() < keys["repeat"]:
            name = f"{item['id']}-again"
            again.append(item | {"id": name, "repeats": item["id"], "num_wanted": 1})
    yield from again


def make_jobs(prompts: Iterable[Any], script: AskArguments) -> Iterator[dict[str, Any]]:
    """What is to be sampled for prompts, each of one kind of answer in turns.

    Args:
        prompts: Texts or messages.
        script: Names the models, which take turns, so that a pair of two has one of each; and the
            kinds of answers, the aspects, the completions of a ranking, the seed.

    Returns:
        Jobs for the queue.
    """
    for number, prompt in enumerate(prompts):
        kind = script.kinds[number % len(script.kinds)]
        count = script.num_completions if kind == "rank" else NUM_COMPLETIONS.get(kind, 1)
        models = [script.names[(number + n) % len(script.names)] for n in range(count)]
        name = item_id([prompt, kind, script.seed, number], models)
        job = {"prompt": prompt, "models": models, "kind": kind, "aspects": script.aspects}
        yield job | {"item": name}


def fill(store: Store, sample: Sampler, talk: Talker) -> NoReturn:
    """Sample what the queue holds, and what comes into it, for as long as the process lives.

    Args:
        store: The store, with its settings.
        sample: Writes completions.
        talk: Writes a reply in a chat, piece by piece.
    """
    while True:
        jobs, counts = store.next_jobs(BATCH), store.counts()
        if jobs and "messages" in jobs[0]:
            _reply(store, jobs[0], talk)
        elif jobs and counts["fresh"] < AHEAD:
            _fill(store, jobs, sample)
        else:
            time.sleep(PAUSE)


def _fill(store: Store, jobs: Sequence[dict[str, Any]], sample: Sampler) -> None:
    keys = store.settings
    seed = random.Random(f"{keys['seed']} {jobs[0]['item']}").getrandbits(32)
    try:
        sets = sample_sets(jobs, sample, seed)
    except UserError as error:  # such as a prompt that is too long
        if len(jobs) > 1:
            for job in jobs:
                _fill(store, [job], sample)
            return
        note(f"a prompt is left out: {error}")
        sets = {}
    items = []
    for number, job in enumerate(jobs):
        if number not in sets:  # its completions are equal or empty, however often drawn
            store.tell_job(job["item"], state="failed")
            continue
        pairs = zip(sets[number], job["models"], strict=True)
        said = [{"content": one.text, "run": name} for one, name in pairs]
        asked = {key: job[key] for key in ("prompt", "kind", "aspects")}
        items.append(asked | {"id": job["item"], "completions": said})
    store.add_items(with_repeats(items, keys))


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
    except Exception as error:
        # Told to who waits, such as a context that is full; a fault would come at each start again.
        store.tell_job(job["item"], texts=texts, error=str(error), state="failed")
        if not isinstance(error, UserError):
            raise
        return
    store.tell_job(job["item"], texts=texts, state="done")
