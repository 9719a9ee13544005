"""A chat with the model on the page: replies come from the queue, and what people do is kept.

Explicit answers (thumbs, better or worse than before, two side by side, edits) are rows like any
other; implicit ones (kept, copied, asked again) have the source implicit and weight 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from recipes.lib.annotation.text import visible
from recipes.lib.errors import UserError
from recipes.lib.feedback.rows import Row, item_id, make_row
from recipes.lib.feedback.store import Store

Body = dict[str, Any]
MAX_MESSAGES = 200
MAX_CHARACTERS = 200_000
REACTION = {"kind", "value", "completion", "other", "implicit", "supersedes"}
IMPLICIT = {"kept": True, "copied": True, "asked again": False}  # whether it speaks for the answer


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_MESSAGES
        and all(isinstance(one, dict) and {*one} == {"role", "content"} for one in value)
        and all(one["role"] in ("system", "user", "assistant") for one in value)
        and all(isinstance(one["content"], str) for one in value)
        and sum(len(one["content"]) for one in value) <= MAX_CHARACTERS
        and value[-1]["role"] == "user"
    )


def _is_reaction(value: Any) -> bool:
    return isinstance(value, dict) and {"kind", "value"} <= {*value} <= REACTION


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 64


FIELDS: dict[str, Callable[[Any], bool]] = {
    "chat": _is_name,
    "messages": _are_messages,
    "attempt": lambda value: type(value) is int and 0 <= value < 1000,
    "job": _is_name,
    "id": _is_name,
    "reaction": _is_reaction,
}


def begin(store: Store, annotator: str, body: Body) -> Body:
    """Who talks here; the page keeps its conversation under what the server adds."""
    return {"annotator": annotator, "implicit": store.settings["implicit"]}


def say(store: Store, annotator: str, body: Body) -> Body:
    """Ask for a reply, or now and then for two that are compared."""
    keys, messages = store.settings, body["messages"]
    models = list(keys["models"])
    turn = sum(message["role"] == "user" for message in messages)
    about = [annotator, body["chat"], *models, keys["seed"]]
    job = item_id([messages, body["attempt"]], about)
    draw = random.Random(job)
    if body["attempt"] == 0 and keys["compare_every"] and turn % keys["compare_every"] == 0:
        models = (models * 2)[:2]
        draw.shuffle(models)  # nobody is to know who stands first
    else:
        models = [draw.choice(models)]
    asked = {"item": job, "messages": messages, "models": models, "texts": [""] * len(models)}
    store.add_jobs([asked], annotator=annotator)
    return {"job": job}


def reply(store: Store, annotator: str, body: Body) -> Body:
    """How far a reply is."""
    job = store.job(body["job"], annotator)
    shown = [visible(text) for text in job["texts"]]
    told = {"state": job["state"], "error": job.get("error")}
    return told | {"texts": job["texts"], "shown": shown}


def react(store: Store, annotator: str, body: Body) -> Body:
    """Keep what somebody did with a reply."""
    job, given = store.job(body["job"], annotator), body["reaction"]
    if job["state"] != "done":
        raise UserError("reaction: the reply is not there yet.")
    why = given.get("implicit")
    if why is None or store.settings["implicit"]:
        store.add_rows([_row(store, annotator, body, job)])
    return {"saved": body["id"]}


def _row(store: Store, annotator: str, body: Body, job: dict[str, Any]) -> Row:
    given, why = body["reaction"], body["reaction"].get("implicit")
    kind, value = given["kind"], given["value"]
    pairs = zip(job["texts"], job["models"], strict=True)
    said = [{"content": text, "run": name} for text, name in pairs]
    if given.get("other") is not None:  # an earlier reply to the same
        other = store.job(str(given["other"]), annotator)
        if other["messages"] != job["messages"] or other["state"] != "done":
            raise UserError("reaction: the other reply is to something else.")
        said = [said[0], {"content": other["texts"][0], "run": other["models"][0]}]
    elif kind in ("thumb", "edit"):
        place = given.get("completion", 0)
        if type(place) is not int or not 0 <= place < len(said):
            raise UserError("reaction: completion must be the index of one.")
        said = [said[place]]
    if kind not in ("thumb", "edit", "pair"):
        raise UserError(f"reaction: {kind} is none of thumb, edit, pair.")
    if why is not None and (kind != "thumb" or IMPLICIT.get(why) is not value):
        raise UserError("reaction: implicit must be kept, copied or asked again.")
    item = {"id": job["item"], "prompt": job["messages"], "completions": said}
    before = given.get("supersedes") and f"{job['item']}-{given['supersedes']}"
    keys: Any = {"source": "implicit" if why else "human", "weight": 0.0 if why else 1.0}
    keys |= {"seconds": body["seconds"], "reason": why, "supersedes": before}
    order = list(range(len(said))) if given.get("other") is None else None  # not side by side
    keys |= {"id": f"{job['item']}-{body['id']}", "shown_order": order}
    return make_row(item, kind=kind, value=value, annotator=annotator, **keys)
