"""A Hub on this machine that serves repositories of several revisions to the real client."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

KIND = {"datasets": "datasets", "models": ""}


class HubServer:
    """Serves folders under names and revisions; use it as a context.

    Args:
        repos: Folders by (kind, name, revision); kind is "models" or "datasets", and a revision is
            a tag, whose commit is the hash of its name.
    """

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def __init__(self, repos: dict[tuple[str, str, str], Path]) -> None:
        self.repos = repos
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.asked.append(f"{self.command} {self.path}")
                code, headers, body = hub.reply(unquote(urlparse(self.path).path))
                part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
                if part and code == 200:
                    first, last = int(part[1]), int(part[2] or len(body) - 1)
                    headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                    code, body = 206, body[first : last + 1]
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = answer

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Code, headers and body of the answer to one request."""
        for (kind, name, tag), folder in self.repos.items():
            for revision in (tag, commit_of(tag)):
                found = self._in_repo(path, kind, name, revision, folder)
                if found is not None:
                    return found[0], found[1] | {"X-Repo-Commit": commit_of(tag)}, found[2]
        # A name that is there, at a revision that is not.
        is_known = any(f"/{name}/" in path for _, name, _ in self.repos)
        return 404, {"X-Error-Code": "RevisionNotFound" if is_known else "RepoNotFound"}, b"{}"

    def _in_repo(
        self, path: str, kind: str, name: str, revision: str, folder: Path
    ) -> tuple[int, dict[str, str], bytes] | None:
        api = f"/api/{kind}/{name}"
        files = sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())
        if path == f"{api}/revision/{revision}":
            siblings = [{"rfilename": one} for one in files]
            info = {"id": name, "sha": commit_of(revision), "siblings": siblings, "tags": []}
            return as_json(info | {"private": False, "downloads": 0, "gated": False})
        if path.startswith(f"{api}/tree/{revision}"):
            return as_json([entry(folder, one) for one in files])
        if path == f"{api}/paths-info/{revision}":
            return as_json([entry(folder, one) for one in files])
        start = "/".join(["", *filter(None, [KIND[kind], name, "resolve", revision])]) + "/"
        if path.startswith(start):
            file = folder / path.removeprefix(start)
            if not file.is_file():
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            data = file.read_bytes()
            tag = hashlib.sha1(data).hexdigest()
            return 200, {"ETag": f'"{tag}"', "Accept-Ranges": "bytes"}, data
        return None


def commit_of(revision: str) -> str:
    """The commit that a tag stands for; a commit stands for itself."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return hashlib.sha1(revision.encode()).hexdigest()


def entry(folder: Path, name: str) -> dict[str, Any]:
    """A file in a list of files."""
    data = (folder / name).read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def as_json(value: Any) -> tuple[int, dict[str, str], bytes]:
    """An answer in JSON."""
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
