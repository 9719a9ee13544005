"""A Hub on this machine that speaks what the real client speaks, keeps commits, and fails on order.

Regular files, LFS in one part or several, branches, commits with a parent, downloads. No Xet: the
client takes that wherever hf_xet is installed, so those who push to it set HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

OWNER = "someone"  # of every token
PART = 40_000  # bytes of a part, where a file is sent in several
Files = dict[str, bytes]
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Repo:
    """Commits of a repository: branches by name, files by commit."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    files: dict[str, Files] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)  # commit, branch, message, changed

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit stands for."""
        return revision if revision in self.files else self.branches.get(revision)

    @property
    def head(self) -> str:
        """The commit of the main branch."""
        return self.branches["main"]


@dataclass
class Fault:
    """What goes wrong with one request.

    Args:
        on: Its number, from 0, or a part of its method and path.
        code: The answer; None drops the connection instead.
        is_after: Whether the request has had its effect by then.
        times: How often.
        headers: Of the answer.
        said: What it says.
    """

    on: int | str
    code: int | None = None
    is_after: bool = False
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    said: str = "made to fail"

    @property
    def answer(self) -> Answer | None:
        """What the client gets."""
        if self.code is None:
            return None
        return self.code, self.headers, json.dumps({"error": self.said}).encode()


class LoopbackHub:
    """A Hub of its own; use it as a context.

    Args:
        folders: Repositories that it has: folders by (kind, name, revision), where kind is "models"
            or "datasets", and a revision is a tag, whose commit is the hash of its name.
    """

    def __init__(self, folders: dict[tuple[str, str, str], Path] | None = None) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.ignored: list[str] = []  # as by a .gitignore
        self.faults: list[Fault] = []
        self.has_parts = False
        self.before: Callable[[int], None] = lambda number: None  # called with each request
        self.after: Callable[[int], None] = lambda number: None  # when it has had its effect
        self.lock = threading.RLock()
        for (kind, name, tag), folder in (folders or {}).items():
            repo = self.repos.setdefault((kind, name), Repo())
            repo.branches[tag] = commit_of(tag)
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
            repo.files[commit_of(tag)] = files
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def model(self, name: str) -> Repo:
        """A repository of a model."""
        return self.repos["models", name]

    def fault(self, number: int, request: str) -> Fault | None:
        """The fault of a request, which is used up by it."""
        for fault in self.faults:
            hit = fault.on == number if isinstance(fault.on, int) else fault.on in request
            if hit and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def handle(self, method: str, path: str, body: bytes) -> Answer | None:
        """One request, with what is to go wrong; None drops the connection."""
        if path == "/api/agent-harnesses":  # the client asks at times, and needs no answer
            return missing("EntryNotFound")
        with self.lock:
            number = len(self.asked)
            self.asked.append(f"{method} {path}")
            self.before(number)
            fault = self.fault(number, self.asked[-1])
            if fault is not None and not fault.is_after:
                return fault.answer
            answer = self.reply(method, unquote(urlparse(path).path), body)
            self.after(number)
        return answer if fault is None else fault.answer

    def reply(self, method: str, path: str, body: bytes) -> Answer:
        """Code, headers and body of the answer to one request."""
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return as_json({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            return self._lfs(method, path.split("/")[2:], body)
        for (kind, name), repo in self.repos.items():
            start = f"/api/{kind}/{name}/"
            prefix = "/" if kind == "models" else f"/{kind}/"
            if path == start[:-1]:
                return as_json(info(name, repo, "main"))
            if path.startswith(start):
                return self._api(name, repo, path.removeprefix(start), body)
            if path == f"{prefix}{name}.git/info/lfs/objects/batch":
                return self._batch(json.loads(body))
            if path.startswith(f"{prefix}{name}/resolve/"):
                return resolve(repo, path.removeprefix(f"{prefix}{name}/resolve/"))
        return missing("RepoNotFound")

    def _create(self, asked: dict[str, Any]) -> Answer:
        self.created.append(asked)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        url = {"url": f"{self.address}/{name}"}
        if ("models", name) in self.repos:
            return as_json(url, 409)
        repo = Repo(private=asked.get("visibility") == "private")
        self.repos["models", name] = repo
        self._commit(repo, "main", {".gitattributes": b"*.safetensors lfs\n"}, "initial commit")
        return as_json(url)

    def _api(self, name: str, repo: Repo, path: str, body: bytes) -> Answer:
        action, _, rest = path.partition("/")
        if action == "branch":
            if rest in repo.branches:
                return as_json({"error": "the branch is there"}, 409)
            repo.branches[rest] = repo.head
            return as_json({})
        commit, inside = repo.commit_of(rest), ""
        if commit is None and action == "tree":  # of a folder
            first, _, inside = rest.partition("/")
            commit = repo.commit_of(first)
        if commit is None:
            return missing("RevisionNotFound")
        files = {one: data for one, data in repo.files[commit].items() if one.startswith(inside)}
        if not files:
            return missing("EntryNotFound")
        if action == "revision":
            return as_json(info(name, repo, commit))
        if action in ("tree", "paths-info"):
            return as_json([entry(one, data) for one, data in files.items()])
        if action == "preupload":
            asked = [one["path"] for one in json.loads(body)["files"]]
            return as_json({"files": [self._upload_mode(one, files) for one in asked]})
        if action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            return self._take(name, repo, rest, lines)
        return missing("EntryNotFound")

    def _upload_mode(self, path: str, files: Files) -> dict[str, Any]:
        mode = "lfs" if is_lfs(path) else "regular"
        oid = {"oid": entry(path, files[path])["oid"]} if path in files and mode != "lfs" else {}
        is_ignored = any(fnmatch.fnmatch(path, one) for one in self.ignored)
        return {"path": path, "uploadMode": mode, "shouldIgnore": is_ignored} | oid

    def _batch(self, asked: dict[str, Any]) -> Answer:
        objects = []
        for one in asked["objects"]:
            oid, size = one["oid"], one["size"]
            upload: dict[str, Any] = {"href": f"{self.address}/lfs/{oid}"}
            if self.has_parts:
                numbers = range(1, -(-size // PART) + 1)
                urls = {f"{n:05}": f"{self.address}/lfs/{oid}/{n}" for n in numbers}
                upload["header"] = {"chunk_size": str(PART)} | urls
            actions = {"upload": upload, "verify": {"href": f"{self.address}/lfs/{oid}/verify"}}
            objects.append(one | ({} if oid in self.blobs else {"actions": actions}))
        return as_json({"transfer": "multipart" if self.has_parts else "basic", "objects": objects})

    def _lfs(self, method: str, path: list[str], body: bytes) -> Answer:
        oid, part = path[0], path[1] if len(path) > 1 else ""
        if method == "PUT" and part:
            self.parts[oid, int(part)] = body
            return 200, {"ETag": f'"{part}"'}, b""
        if method == "POST" and not part:  # of several parts, all are there
            numbers = [one["partNumber"] for one in json.loads(body)["parts"]]
            body = b"".join(self.parts[oid, number] for number in numbers)
        if part == "verify":
            return as_json({}, 200 if oid in self.blobs else 404)
        if hashlib.sha256(body).hexdigest() != oid:
            return as_json({"error": "other content than was said"}, 400)
        self.blobs[oid] = body
        return as_json({})

    def _take(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> Answer:
        if branch not in repo.branches:
            return as_json({"error": "commits go to branches"}, 400)
        files = dict(repo.files[repo.branches[branch]])
        message = ""
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", repo.branches[branch]) != repo.branches[branch]:
                    return as_json({"error": "the branch has moved"}, 412)
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.blobs:
                    return as_json({"error": f"{value['path']} was never uploaded"}, 400)
                files[value["path"]] = self.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = self._commit(repo, branch, files, message)
        url = f"{self.address}/{name}/commit/{commit}"
        return as_json({"commitUrl": url, "commitOid": commit})

    def _commit(self, repo: Repo, branch: str, files: Files, message: str) -> str:
        before = repo.files.get(repo.branches.get(branch, ""), {})
        changed = {name for name in files | before if files.get(name) != before.get(name)}
        commit = commit_of(f"{branch} {len(repo.files)} {message}")
        repo.files[commit], repo.branches[branch] = files, commit
        row = {"commit": commit, "branch": branch, "message": message, "changed": changed}
        repo.log.append(row)
        return commit

    def commit(
        self, name: str, files: Files, message: str = "by hand", branch: str = "main"
    ) -> str:
        """Commit files of somebody else's; give the commit."""
        repo = self.model(name)
        with self.lock:
            return self._commit(repo, branch, repo.files[repo.branches[branch]] | files, message)


def handler_of(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    """The class that answers for a Hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = body_of(self)
            if self.headers.get("Authorization"):
                hub.tokens.add(self.headers["Authorization"].removeprefix("Bearer "))
            found = hub.handle(self.command, self.path, body)
            if found is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            code, headers, content = part_of(found, self.headers.get("Range") or "")
            self.send_response(code)
            for key, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def handle(self) -> None:
            """Serve; a client that was killed is no mistake."""
            try:
                super().handle()
            except (OSError, ValueError):
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    return Handler


def body_of(handler: BaseHTTPRequestHandler) -> bytes:
    """What a request brings, at once or in chunks."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def part_of(answer: Answer, asked: str) -> Answer:
    """An answer, or the bytes of it that were asked for."""
    code, headers, content = answer
    part = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
    if not part or code != 200:
        return answer
    first, last = int(part[1]), int(part[2] or len(content) - 1)
    whole = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return 206, headers | whole, content[first : last + 1]


def is_lfs(path: str) -> bool:
    """Whether a file is kept by its hash, and not in git."""
    return path.endswith(".safetensors")


def resolve(repo: Repo, path: str) -> Answer:
    """A file of a revision."""
    for revision in (*repo.branches, *repo.files):
        if path.startswith(f"{revision}/"):
            commit = repo.commit_of(revision) or ""
            name = path.removeprefix(f"{revision}/")
            known = {"X-Repo-Commit": commit}
            if name not in repo.files[commit]:
                return 404, {"X-Error-Code": "EntryNotFound"} | known, b"{}"
            data = repo.files[commit][name]
            tag = hashlib.sha256(data).hexdigest() if is_lfs(name) else entry(name, data)["oid"]
            return 200, {"ETag": f'"{tag}"', "Accept-Ranges": "bytes"} | known, data
    return missing("RevisionNotFound")


def info(name: str, repo: Repo, revision: str) -> dict[str, Any]:
    """What is said of a repository."""
    commit = repo.commit_of(revision) or ""
    siblings = [{"rfilename": one} for one in repo.files[commit]]
    rest = {"private": repo.private, "tags": [], "downloads": 0, "gated": False}
    return {"id": name, "sha": commit, "siblings": siblings} | rest


def entry(name: str, data: bytes) -> dict[str, Any]:
    """A file in a list of files, with the hash that git has for it."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found = {"type": "file", "path": name, "size": len(data), "oid": oid}
    if is_lfs(name):
        sha256 = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
    return found


def commit_of(revision: str) -> str:
    """The commit that a tag stands for; a commit stands for itself."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return hashlib.sha1(revision.encode()).hexdigest()


def as_json(value: Any, code: int = 200) -> Answer:
    """An answer in JSON."""
    return code, {"Content-Type": "application/json"}, json.dumps(value).encode()


def missing(what: str) -> Answer:
    """An answer that something is not there."""
    return 404, {"X-Error-Code": what}, b"{}"
