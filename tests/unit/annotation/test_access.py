"""A stranger at the door: real HTTP against the real server, as raw as a stranger would send it."""

import http.client
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from recipes.lib.annotation.access import Access, names_of
from recipes.lib.feedback.store import Store
from tests.helpers.feedback_server import Server, item

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks for links."""
    made = Server(tmp_path_factory.mktemp("project") / "feedback.db", annotator="")
    yield made
    made.kill()


@pytest.fixture(scope="module")
def store(server: Server) -> Store:
    opened = Store(server.database)
    opened.add_items([item(1), item(2)])
    return opened


@pytest.fixture(scope="module")
def secret(store: Store) -> str:
    return store.give_secret("anna")


def ask(server: Server, path: str, body: Any = None, method: str = "", **headers: str) -> Answer:
    """Send a request; a browser's Host and Origin unless told otherwise, None leaves one out."""
    sent = {"Host": f"127.0.0.1:{server.port}"}
    if body is not None:
        sent |= {"Origin": server.address.rstrip("/"), "Content-Type": "application/json"}
    sent |= headers
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
    for name, value in (sent | {"Content-Length": str(len(content or b""))}).items():
        if value:
            connection.putheader(name, value)
    connection.endheaders(content)
    got = connection.getresponse()
    answer = (got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
    connection.close()
    return answer


NEXT = {"tab": "t", "holding": [], "number": 2}
ANSWER = NEXT | {"claim": "c", "answers": [], "seconds": 1, "reason": ""}
SQL = "' OR 1=1; DROP TABLE answers; --"
# Path, body, headers, status: what a stranger tries who has no link.
TRIES: dict[str, tuple[str, Any, dict[str, str], int]] = {
    "no link": ("/next", NEXT, {}, 403),
    "no link, answering": ("/answer", ANSWER, {}, 403),
    "no link, taking back": ("/undo", {"tab": "t"}, {}, 403),
    "no link, looking": ("/differences", {"claim": "c"}, {}, 403),
    "no link, Markdown": ("/markdown", {"text": "x"}, {}, 403),
    "an empty link": ("/a/", None, {}, 404),
    "a path instead of a link": ("/a/x/../../feedback.db", None, {}, 404),
    "path traversal": ("/static/../store.py", None, {}, 404),
    "path traversal, escaped": ("/static/..%2f..%2ffeedback%2fstore.py", None, {}, 404),
    "path traversal, absolute": ("/static/%2fetc%2fpasswd", None, {}, 404),
    "another file": ("/static/server.py", None, {}, 404),
    "the database": ("/feedback.db", None, {}, 404),
    "another method": ("/next", b"", {"method": "DELETE"}, 405),
    "asking by GET": ("/next", None, {}, 405),
    "foreign Host": ("/", None, {"Host": "evil.example"}, 400),
    "Host that is half an address": ("/", None, {"Host": "[::1].evil.example"}, 400),
    "Host that begins well": ("/", None, {"Host": "127.0.0.1.evil.example"}, 400),
}


@pytest.mark.parametrize("name", TRIES)
def test_a_stranger_is_refused_and_learns_nothing(server: Server, store: Store, name: str) -> None:
    path, body, headers, status = TRIES[name]
    got, sent, content = ask(server, path, body, **headers)
    assert got == status
    assert not any(word in content for word in (b"Prompt", b"secret", b"sqlite", b"Traceback"))
    assert "default-src 'none'" in sent["content-security-policy"]
    assert "set-cookie" not in sent


FOREIGN = [
    "",
    "null",
    "http://evil.example",
    "http://127.0.0.1:1",
    "https://127.0.0.1.evil.example",
]


@pytest.mark.parametrize("origin", FOREIGN, ids=lambda origin: origin or "none")
def test_another_page_cannot_post_with_the_cookie_of_the_browser(
    server: Server, secret: str, origin: str
) -> None:
    cookie = {"Cookie": f"annotator-{server.port}={secret}"}
    assert ask(server, "/next", NEXT, **cookie)[0] == 200
    got, _, content = ask(server, "/next", NEXT, Origin=origin, **cookie)
    assert (got, content) == (403, b"Only the page itself may post here.")
    foreign = {"Origin": "http://evil.example", "Host": "evil.example"}  # DNS rebinding
    assert ask(server, "/next", NEXT, **cookie, **foreign)[0] == 400


def test_a_link_becomes_a_cookie_and_shows_what_is_asked_of_its_owner_alone(
    server: Server, store: Store, secret: str
) -> None:
    status, sent, _ = ask(server, f"/a/{secret}")
    assert (status, sent["location"]) == (303, "/")
    assert "HttpOnly" in sent["set-cookie"]
    assert "SameSite=strict" in sent["set-cookie"]
    anna = {"Cookie": sent["set-cookie"].split(";")[0]}
    asked = json.loads(ask(server, "/next", NEXT, **anna)[2])["asked"]
    assert [one["prompt"][0]["parts"] for one in asked] == [["Prompt 1"], ["Prompt 2"]]
    assert set(asked[0]) == {"claim", "kind", "aspects", "prompt", "completions", "shown_order"}
    assert "runs/" not in json.dumps(asked)
    ben = {"Cookie": f"annotator-{server.port}={store.give_secret('ben')}"}
    for path, body in (
        ("/differences", {"claim": asked[0]["claim"]}),
        ("/answer", ANSWER | {"claim": asked[0]["claim"]}),
        ("/answer", ANSWER | {"claim": SQL}),
    ):
        status, _, content = ask(server, path, body, **ben)
        assert status == 400
        assert b"nothing of that name was asked of ben" in content
    assert list(store.rows()) == []
    store.revoke("ben")
    status, _, content = ask(server, "/next", NEXT, **ben)
    assert (status, "not valid (any more)" in content.decode()) == (403, True)


def test_a_body_that_is_too_large_is_refused_also_where_it_does_not_say_so(
    server: Server, secret: str
) -> None:
    cookie = {"Cookie": f"annotator-{server.port}={secret}"}
    large = json.dumps({"text": "x" * 2_200_000}).encode()
    assert ask(server, "/markdown", large, **cookie)[0] == 413
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large)
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": ""}
    assert ask(server, "/markdown", chunk, **cookie, **chunked)[0] == 413
    assert ask(server, "/markdown", {"text": "x" * 100_001}, **cookie)[0] == 400


class Asking:
    """Requests of one address at an access, without a server between: its clock can be turned."""

    def __init__(self, access: Access) -> None:
        self.access = access

    def status(self, secret: str, address: str = "192.0.2.7") -> int:
        scope: dict[str, Any] = {"type": "http", "path": "/", "scheme": "http"}
        scope |= {"client": (address, 5), "headers": [(b"host", b"h:80")]}
        scope |= {"path_params": {"secret": secret}}
        try:
            return self.access.enter(Request(scope)).status_code
        except HTTPException as error:
            return error.status_code


def test_many_fast_tries_are_slowed_but_not_for_who_was_right_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "feedback.db")
    right, late = store.give_secret("anna"), store.give_secret("ben")
    asking, now, guess = Asking(Access(store)), [1_000.0], map(str, itertools.count())
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert asking.status(right) == 303
    assert [asking.status(next(guess)) for _ in range(8)] == [403] * 5 + [429] * 3
    assert asking.status(late) == 429
    assert asking.status(right) == 303
    now[0] += 0.3
    assert [asking.status(next(guess)), asking.status(next(guess))] == [403, 429]
    tried = 0
    for _ in range(600):  # ten minutes of a try each second
        now[0] += 1.0
        tried += asking.status(next(guess)) == 403
    assert tried < 18
    # of many addresses one wrong try a second is looked up in all, and little is remembered
    now[0] += 60.0
    addresses = [f"192.0.{n // 250}.{n % 250}" for n in range(1_200)]
    assert sum(asking.status(next(guess), one) == 403 for one in addresses) == 1
    for one in addresses:
        now[0] += 1.1
        asking.status(next(guess), one)
    assert len(asking.access.wrong) == 1_000
    now[0] += 60.0
    assert asking.status(late) == 303


def test_a_page_with_an_old_link_asks_on_and_shuts_nobody_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    old, never = store.give_secret("anna"), "cookie of a project that is gone"
    asking = Asking(Access(store))
    assert asking.status(old) == 303
    store.revoke("anna")
    new = store.give_secret("anna")
    for _ in range(50):
        assert [asking.status(old), asking.status(never)] == [403, 403]
    assert asking.status(new) == 303


def test_a_page_for_others_is_asked_for_under_the_names_of_its_machine() -> None:
    assert "192.0.2.5" in names_of("192.0.2.5")
    assert "[2001:db8::1]" in names_of("2001:db8::1")
    everywhere = names_of("0.0.0.0")
    assert {"127.0.0.1", "localhost"} < {*everywhere}
    assert not {"0.0.0.0", "*", ""} & {*everywhere}
