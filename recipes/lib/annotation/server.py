"""The server of the page: what is asked goes out, what is answered becomes rows in the store."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from recipes.lib.annotation import chat, text
from recipes.lib.annotation.access import Access, guard
from recipes.lib.errors import UserError
from recipes.lib.feedback.rows import NUM_COMPLETIONS, Row, make_row, without_halves
from recipes.lib.feedback.store import Asked, Store

Body = dict[str, Any]
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = {path.name: path for path in Path(__file__).parent.iterdir() if path.suffix in TYPES}
FAILURES = (HTTPException, UserError, SQLAlchemyError, OSError)
MAX_BODY = 2 * 1024 * 1024  # bytes
MAX_TEXT = 100_000  # characters that somebody writes
MAX_ANSWERS = 1_000
ANSWER = {"kind", "value", "aspect", "strength", "completion"}


def _is_text(value: Any, most: int = MAX_TEXT) -> bool:
    return isinstance(value, str) and len(value) <= most


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) <= MAX_ANSWERS and all(map(holds, value))


def _is_name(value: Any) -> bool:
    return _is_text(value, 64)


def _is_answer(value: Any) -> bool:
    return isinstance(value, dict) and {"kind", "value"} <= {*value} <= ANSWER


# What a request may have, and must have where its endpoint names it.
FIELDS: dict[str, Callable[[Any], bool]] = chat.FIELDS | {
    "tab": _is_name,
    "claim": _is_name,
    "holding": lambda value: _is_list(value, _is_name),
    "number": lambda value: type(value) is int and 0 <= value <= 4,
    "answers": lambda value: _is_list(value, _is_answer),
    "seconds": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "reason": _is_text,
    "text": _is_text,
}


def make_app(
    store: Store, access: Access, project: str = "", *, is_chat: bool = False
) -> Starlette:
    """Make the page's application.

    Args:
        store: Of the project.
        access: Who may answer.
        project: Its name, so that a browser keeps unsent answers of several projects apart.
        is_chat: Whether people talk to the model instead of answering what they are asked.

    Returns:
        The application, for any ASGI server.
    """

    def endpoint(work: Callable[[Store, str, Body], Body], names: str) -> Route:
        def told(request: Request, content: bytes) -> Body:
            annotator = access.who(request)
            box = hashlib.sha256(f"{project}\n{annotator}".encode()).hexdigest()
            return {"box": box} | work(store, annotator, _checked(content, names.split()))

        async def answer(request: Request) -> Response:
            # In a thread: the disk may be slow, and other people must not wait for it.
            return _json(await run_in_threadpool(told, request, await request.body()))

        return Route(f"/{work.__name__.strip('_')}", answer, methods=["POST"])

    endpoints = CHAT_ENDPOINTS if is_chat else ENDPOINTS
    return Starlette(
        routes=[
            Route("/", functools.partial(_send_file, index="chat" if is_chat else "page")),
            Route("/static/{name}", _send_file),
            Route("/a/{secret}", access.enter),
            *(endpoint(work, names) for work, names in endpoints.items()),
        ],
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=guard),
            Middleware(TrustedHostMiddleware, allowed_hosts=access.hosts, www_redirect=False),
            Middleware(GZipMiddleware, compresslevel=5),
            Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY),
        ],
        exception_handlers=dict.fromkeys(FAILURES, _failed),
    )


def serve(
    app: Starlette,
    host: str,
    port: int,
    when_ready: Callable[[int], None],
    is_done: Callable[[], bool],
) -> None:
    """Serve the page until it is done, or the process is told to end.

    Args:
        app: From `make_app`.
        host: Address to listen on.
        port: Port; 0 for any that is free.
        when_ready: Is called with the port as soon as browsers can connect.
        is_done: Is asked every second; pages get the time to hear of it.

    Raises:
        UserError: The address or the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        told = f"cannot listen on {host}: {error.strerror or error}; take another, or 0 for any"
        raise UserError(f"port={port}: {told}.") from error
    # No log of requests: links are secret. No trust in headers about who asks: anybody sets them.
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    quiet |= {"proxy_headers": False, "lifespan": "off", "ws": "none"}
    config = uvicorn.Config(app, timeout_keep_alive=60, timeout_graceful_shutdown=2, **quiet)
    with listener, contextlib.suppress(KeyboardInterrupt):
        when_ready(listener.getsockname()[1])
        server = uvicorn.Server(config)
        threading.Thread(target=_end_when, args=(server, is_done), daemon=True).start()
        server.run(sockets=[listener])


def _end_when(server: uvicorn.Server, is_done: Callable[[], bool]) -> None:
    while not is_done():
        time.sleep(1)
    time.sleep(2)  # of the pages of other people, which ask every second and a half
    server.should_exit = True


async def _send_file(request: Request, index: str = "") -> Response:
    name = request.path_params.get("name", f"{index}.html")
    if name not in FILES:
        raise HTTPException(404)
    return FileResponse(FILES[name], media_type=TYPES[FILES[name].suffix])


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    # As ASCII: halves of characters have no UTF-8.
    return Response(json.dumps(value), status, headers, "application/json")


def _failed(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, UserError):
        return _json({"error": str(error)}, 400)
    told = str(getattr(error, "orig", None) or error).split("\n")[0]
    return _json({"error": f"The server cannot save: {told}."}, 503)


def _checked(content: bytes, names: Sequence[str]) -> Body:
    try:
        body = without_halves(json.loads(content))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or {*body} != {*names}:
        raise UserError(f"the request must be JSON with {', '.join(names)}.")
    for name in names:
        if not FIELDS[name](body[name]):
            raise UserError(f"{name}: is not as the page sends it, or too long.")
    return body


def _state(store: Store, annotator: str, asked: Sequence[Asked]) -> Body:
    progress: Body = store.progress(annotator) | {"waiting": False, "done": False}
    wanted = store.settings.get("num_answers")
    if wanted is not None or not asked:
        counts = store.counts()
        progress["waiting"] = counts["waiting"] > 0
    if wanted is not None:
        left = max(0, wanted - counts["answers"])
        progress["done"] = left == 0
        progress["left"] = left if progress["waiting"] else min(left, progress["left"])
    shown = [] if progress["done"] else [_shown(one) for one in asked]
    return {"asked": shown, "progress": progress}


def _shown(asked: Asked) -> Body:
    """What a browser may know of an item: not who wrote what, nor what is right."""
    item, order = asked["item"], asked["shown_order"]

    def parts(content: Any) -> list[Body]:
        return [{"role": role, "parts": text.parts(said)} for role, said in text.messages(content)]

    return {
        "claim": asked["claim"],
        "kind": item["kind"],
        "aspects": _aspects(item),
        "prompt": parts(item["prompt"]),
        "completions": [parts(item["completions"][i]["content"]) for i in order],
        "shown_order": order,
    }


def _aspects(item: Any) -> list[str]:
    return item.get("aspects") or ["overall"]


def _next(store: Store, annotator: str, body: Body) -> Body:
    asked = store.claim(annotator, body["number"], body["holding"], body["tab"])
    return _state(store, annotator, asked)


def _answer(store: Store, annotator: str, body: Body) -> Body:
    claim = body["claim"]
    store.answer(claim, annotator, _rows(store.claimed(claim, annotator), annotator, body))
    return _next(store, annotator, body) | {"saved": claim}


def _undo(store: Store, annotator: str, body: Body) -> Body:
    asked = store.withdraw(annotator, body["tab"])
    return _state(store, annotator, [asked] if asked else [])


def _differences(store: Store, annotator: str, body: Body) -> Body:
    asked = store.claimed(body["claim"], annotator)
    contents = [asked["item"]["completions"][i]["content"] for i in asked["shown_order"]]
    return {"differences": text.differences(contents)}


def _markdown(store: Store, annotator: str, body: Body) -> Body:
    return {"html": text.markdown(body["text"])}


def _rows(asked: Asked, annotator: str, body: Body) -> list[Row]:
    """The rows of an answer; of none, that it cannot be judged."""
    item, rows, seen = asked["item"], [], set()
    common = {"annotator": annotator, "source": "human", "seconds": body["seconds"]}
    common |= {"reason": body["reason"] or None, "weight": 1.0 if body["answers"] else 0.0}
    is_about_one = NUM_COMPLETIONS.get(item["kind"], (1, 1)) == (1, 1)
    places = range(len(item["completions"])) if is_about_one else [0]
    cannot = [{"kind": item["kind"], "value": None, "completion": place} for place in places]
    for number, given in enumerate(body["answers"] or cannot):
        kind, value, index = given["kind"], given["value"], given.get("completion")
        aspect = given.get("aspect", "overall")
        key = json.dumps([kind, index, aspect])
        if kind not in (item["kind"], "edit", "text") or key in seen:
            raise UserError(f"answers: {kind} is not what was asked.")
        seen.add(key)
        judged, order = item, asked["shown_order"]
        if NUM_COMPLETIONS.get(kind, (1, 1)) == (1, 1):
            if type(index) is not int or not 0 <= index < len(item["completions"]):
                raise UserError("answers: completion must be the index of one.")
            judged, order = {**item, "completions": [item["completions"][index]]}, [0]
        if body["answers"]:
            value = _value(judged, kind, value, aspect)
        names = {"id": f"{asked['claim']}-{number}", "strength": given.get("strength")}
        names |= {"kind": kind, "aspect": aspect, "shown_order": order}
        rows.append(make_row(judged, value=value, **names, **common))
    return rows


def _value(item: Any, kind: str, value: Any, aspect: str) -> Any:
    """The value of an answer, checked beyond what every row must hold to."""
    if kind == "rating" and not (type(value) is int and 1 <= value <= 5):
        raise UserError("answers: a rating must be 1 to 5.")
    if aspect not in (_aspects(item) if kind == "rating" else ["overall"]):
        raise UserError("answers: aspect must be one that was asked for.")
    if kind not in ("edit", "text"):
        return value
    if not _is_text(value) or not value.strip():
        raise UserError(f"answers: {kind} must be text of at most {MAX_TEXT} characters.")
    contents = [one["content"] for one in item["completions"]] or [item["prompt"]]
    if isinstance(contents[0], str):
        return value
    before = contents[0][:-1] if kind == "edit" else []
    return [*before, {"role": "assistant", "content": value}]


# What the pages post to: the work, and the fields that its requests have.
Endpoints = dict[Callable[[Store, str, Body], Body], str]
ENDPOINTS: Endpoints = {
    _next: "tab holding number",
    _answer: "tab holding number claim answers seconds reason",
    _undo: "tab",
    _differences: "claim",
    _markdown: "text",
}
CHAT_ENDPOINTS: Endpoints = {
    chat.begin: "",
    chat.say: "chat messages attempt",
    chat.reply: "job",
    chat.react: "job id reaction seconds",
}
