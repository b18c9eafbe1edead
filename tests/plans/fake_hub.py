"""A Hub on this machine that speaks the few requests that huggingface_hub sends for one file.

Repositories are folders of text by branch and commit. ``gated`` ones answer as the real Hub does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Files = dict[str, str]


@dataclass
class FakeHub:
    """What the Hub holds: repository -> branch or commit -> files."""

    repositories: dict[str, dict[str, Files]] = field(default_factory=dict)
    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    read_only: bool = False
    url: str = ""

    def put(self, repository: str, files: Files, branch: str = "main") -> str:
        """Commits files to a branch, and returns the commit."""
        held = self.repositories.setdefault(repository, {"main": {}})
        new = {**held.get(branch, {}), **files}
        commit = hashlib.sha1(json.dumps([repository, branch, new]).encode()).hexdigest()
        held[branch] = held[commit] = new
        self.commits[repository, branch] = self.commits[repository, commit] = commit
        return commit

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request."""
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*map(unquote, found.groups()))
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if method == "POST" and self.read_only:
            return _error(403, "", "You do not have the rights")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.repositories:
                return _error(409, "", "You already created this repo", {"url": self._url(name)})
            self.private[name] = asked.get("private") or asked.get("visibility") == "private"
            self.put(name, {})
            return _json({"url": self._url(name)})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            name, branch = map(unquote, found.groups())
            self.put(name, self.repositories[name]["main"], branch)
            return _json({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            paths = [file["path"] for file in json.loads(body)["files"]]
            same = {"uploadMode": "regular", "shouldIgnore": False}
            return _json({"files": [{"path": one, **same} for one in paths]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            name, branch = map(unquote, found.groups())
            return self._commit(name, branch, body)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            known = unquote(found[1]) in self.repositories
            return _json({"id": unquote(found[1])}) if known else _error(401, "RepoNotFound", "")
        return _json({})

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _commit(self, name: str, branch: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]).decode()
            for line in lines
            if line["key"] == "file"
        }
        commit = self.put(name, files, branch)
        url = f"{self._url(name)}/commit/{commit}"
        return _json({"commitUrl": url, "commitOid": commit, "success": True})

    def _file(self, name: str, revision: str, file: str) -> tuple[int, dict[str, str], bytes]:
        if name in self.gated:
            return _error(403, "GatedRepo", "Access is restricted")
        if name not in self.repositories:
            return _error(401, "RepoNotFound", "Invalid username or password.")
        if revision not in self.repositories[name]:
            return _error(404, "RevisionNotFound", "Invalid rev id")
        content = self.repositories[name][revision].get(file)
        commit = {"X-Repo-Commit": self.commits[name, revision]}
        if content is None:
            return _error(404, "EntryNotFound", "Entry not found", headers=commit)
        data = content.encode()
        return 200, {**commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data


def _json(data: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


def _error(
    status: int,
    code: str,
    message: str,
    data: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    known = {"X-Error-Code": code} if code else {}
    body = json.dumps({"error": message, **(data or {})}).encode()
    return status, {**(headers or {}), **known, "X-Error-Message": message}, body


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The Hub, which answers at ``hub.url`` until the context is left."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, data = hub.answer(self.command, self.path.partition("?")[0], body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
