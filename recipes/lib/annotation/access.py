"""Who may answer: whoever sits at this machine, or whoever has a link of their own.

A browser carries whatever page is open in it here: Host tells a foreign name that leads to this
machine (DNS rebinding), Origin a foreign page that posts (CSRF). A link's secret is 24 random
bytes of which the store has the hash; wrong ones are slowed, for each address and for all.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from recipes.lib.feedback.store import Store

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
NUM_FREE_TRIES = 5
LONGEST_WAITS = (60.0, 1.0)  # seconds between wrong tries of one address, of all
MAX_ADDRESSES, MAX_SECRETS = 1_000, 10_000  # that are remembered
COOKIE_SECONDS = 90 * 86_400
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Access:
    """Who may answer on a page.

    Args:
        store: With the hashes of the links.
        annotator: Who answers without a link, on a page that only this machine reaches; None where
            everybody needs one.
        hosts: Names and addresses under which the page may be asked for, without ports.
    """

    def __init__(
        self, store: Store, annotator: str | None = None, hosts: Collection[str] = LOOPBACK
    ) -> None:
        self.store, self.annotator, self.hosts = store, annotator, [*hosts]
        self.seen: set[bytes] = set()  # hashes of secrets that were looked up
        self.wrong: dict[str, tuple[int, float]] = {}  # tries, and when the next may be

    def who(self, request: Request) -> str:
        """The annotator that a request comes from.

        Raises:
            HTTPException: 403 without a link that holds, 429 after too many wrong ones.
        """
        return self.annotator or self._by_secret(request, request.cookies.get(_cookie(request), ""))

    def enter(self, request: Request) -> Response:
        """Take a link: its secret becomes a cookie that no script and no other page can use."""
        secret = request.path_params["secret"]
        self._by_secret(request, secret)
        answer = RedirectResponse("/", 303)
        name, is_safe = _cookie(request), request.url.scheme == "https"
        answer.set_cookie(
            name, secret, COOKIE_SECONDS, httponly=True, samesite="strict", secure=is_safe
        )
        return answer

    def _by_secret(self, request: Request, secret: str) -> str:
        if not secret:
            raise HTTPException(403, "This page needs a link of your own; ask whoever runs it.")
        digest, now = hashlib.sha256(secret.encode()).digest(), time.monotonic()
        sources = (request.client.host if request.client else "", "all")
        # The same secret again is no guess: of who was right, or of a page with an old cookie.
        is_guess = digest not in self.seen
        wait = max(self.wrong.get(source, (0, 0.0))[1] for source in sources) - now
        if wait > 0 and is_guess:
            told = {"Retry-After": str(int(wait) + 1)}
            raise HTTPException(429, "Too many wrong links; wait a minute.", told)
        name = self.store.by_secret(secret)
        if len(self.seen) > MAX_SECRETS:
            self.seen.clear()
        self.seen.add(digest)
        if name is not None:
            return name
        for source, longest in zip(sources, LONGEST_WAITS, strict=True) if is_guess else ():
            count = self.wrong.pop(source, (0, 0.0))[0] + 1
            delay = 0.25 * 2.0 ** min(count - NUM_FREE_TRIES, 20) if count >= NUM_FREE_TRIES else 0
            self.wrong[source] = (count, now + min(longest, delay))
        if len(self.wrong) > MAX_ADDRESSES:
            self.wrong.pop(next(iter(self.wrong)), None)
        raise HTTPException(403, "This link is not valid (any more); ask for a new one.")


async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Refuse what another page posts, and send the headers that bind the browser."""
    origin = urlsplit(request.headers.get("origin", ""))
    is_own = origin.scheme in ("http", "https") and origin.netloc == request.headers.get("host")
    if request.method in ("GET", "HEAD") or is_own:
        answer = await call_next(request)
    else:
        answer = PlainTextResponse("Only the page itself may post here.", 403)
    answer.headers.update(HEADERS)
    return answer


def names_of(host: str) -> list[str]:
    """Names under which a browser may ask for a page that listens on an address.

    Args:
        host: The address, 0.0.0.0 for all of this machine.

    Returns:
        The loopback's names, the address or, for all, the machine's name and main address.
    """
    if host != "0.0.0.0":
        return [*LOOPBACK, f"[{host}]" if ":" in host else host]
    name = socket.gethostname().lower()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # chooses an interface, sends nothing
        except OSError:
            return [*LOOPBACK, name, f"{name}.local"]
        return [*LOOPBACK, name, f"{name}.local", probe.getsockname()[0]]


def _cookie(request: Request) -> str:
    return f"annotator-{request.url.port or 0}"  # browsers do not tell ports of a host apart
