"""A Hub on this machine that takes what the real client pushes, and keeps it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """Answers as the Hub does to a push; use it as a context.

    Args:
        repo: Name of the repository that is made, whatever was asked for.
    """

    def __init__(self, repo: str) -> None:
        self.repo = repo
        self.tokens: set[str] = set()
        self.created: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []  # branch, message, files (path to content)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Authorization"):
                    hub.tokens.add(self.headers["Authorization"].removeprefix("Bearer "))
                text = json.dumps(hub.reply(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = answer

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, path: str, body: bytes) -> dict[str, Any]:
        """The answer to one request."""
        if path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            return {"url": f"{self.address}/{self.repo}"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [file | {"uploadMode": "regular"} | NOT_IGNORED for file in files]}
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            files = {value["path"]: base64.b64decode(value["content"]) for value in values}
            message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
            branch = path.rpartition("/commit/")[2]
            self.commits.append({"branch": branch, "message": message, "files": files})
            return {"commitUrl": f"{self.address}/{self.repo}/commit/0", "commitOid": "0"}
        return {"errors": [], "warnings": []}

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


NOT_IGNORED = {"shouldIgnore": False}
