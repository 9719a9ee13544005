"""A server of OpenAI's chat protocol on this machine, which can drop, limit, fail and babble."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Behave = Callable[["Call"], None]


class Call:
    """One request that has come in, and the ways to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, number: int) -> None:
        self.handler, self.number = handler, number
        length = int(handler.headers.get("Content-Length", 0))
        self.body: dict[str, Any] = json.loads(handler.rfile.read(length))
        self.messages: list[dict[str, str]] = self.body["messages"]
        self.question = self.messages[0]["content"]
        self.key = handler.headers.get("Authorization", "")

    @property
    def start(self) -> str:
        """How the last line has to begin, as the question says."""
        return self.question.rsplit("`", 2)[1]

    def part(self, name: str) -> str:
        """What stands between the marks of one thing that is judged."""
        word = self.start.split()[1].rstrip(":")
        return self.question.split(f"<{name} {word}>\n")[1].split(f"\n</{name} {word}>")[0]

    def status(self, status: int, body: str = "", **headers: str) -> None:
        """Answer with a status."""
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.send_header("Content-Length", str(len(body.encode())))
        self.handler.end_headers()
        self.handler.wfile.write(body.encode())

    def say(self, text: str | None) -> None:
        """Answer as a model does that says this; it counts 100 tokens read and 10 written."""
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.status(200, json.dumps({"choices": [choice], "usage": usage}))

    def verdict(self, value: object) -> None:
        """Answer in the form that was asked for."""
        self.say(f"Some reasons.\n{self.start} {value}")

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.handler.close_connection = True
        self.handler.connection.close()


class JudgeServer:
    """What a test sees of the server: its address, the calls, how many ran at a time."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.calls: list[Call] = []
        self.questions: Counter[str] = Counter()
        self.running = self.most = 0
        self.lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with judge.lock:
                    call = Call(self, len(judge.calls))
                    judge.calls.append(call)
                    judge.questions[hashlib.sha256(call.question.encode()).hexdigest()] += 1
                    judge.running += 1
                    judge.most = max(judge.most, judge.running)
                try:
                    judge.behave(call)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with judge.lock:
                        judge.running -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who asked died
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1"

    def file(self, path: Path, **keys: Any) -> str:
        """Write a judge's file for this server; its cache lies beside it."""
        values = {"model": "judge-1", "endpoint": self.endpoint}
        values |= {"cache": str(path.parent / "cache"), "max_unparsable": 1.0} | keys
        path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))
        return str(path)


@contextmanager
def serving(behave: Behave) -> Iterator[JudgeServer]:
    """Run a server that treats each call as the function does."""
    judge = JudgeServer(behave)
    thread = threading.Thread(target=judge.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.server.shutdown()
        judge.server.server_close()
        thread.join()


def words(call: Call) -> int:
    """A score from 1 to 10: the words of the completion."""
    return max(1, min(10, len(call.part("completion").split())))


def slowly(seconds: float, behave: Behave) -> Behave:
    """The same behind a pause."""

    def waits(call: Call) -> None:
        time.sleep(seconds)
        behave(call)

    return waits
