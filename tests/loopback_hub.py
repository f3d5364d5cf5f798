"""A model hub on this machine: repositories as dictionaries, and all the ways a real one fails."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def git_hash(data: bytes) -> str:
    """What git, and so the hub, calls a small file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    """A name for just these files."""
    return git_hash(b"".join(name.encode() + files[name] for name in sorted(files)))


@dataclass
class Hub:
    """What is served, and how.

    Attributes:
        files: by repository ("owner/name") and file.
        announced: hashes that are announced instead of the right ones, by file.
        sends: bytes that are sent instead of the file's, by file; fewer break the download off.
        statuses: what is answered instead, by repository: a status and the hub's name of the error.
        requests: how often there was which, as (method, path).
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    announced: dict[str, str] = field(default_factory=dict)
    sends: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: Counter = field(default_factory=Counter)

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        # Asks every so many seconds whether it is to end.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file(with_body=False)

    def do_GET(self) -> None:
        self._file(with_body=True)

    def _file(self, with_body: bool) -> None:
        self.hub.requests[self.command, self.path] += 1
        owner, name, _, _, file = [*self.path.lstrip("/").split("/", 4), "", "", "", ""][:5]
        repository = f"{owner}/{name}"
        if repository in self.hub.statuses:
            self._refuse(*self.hub.statuses[repository])
        elif repository not in self.hub.files:
            self._refuse(404, "RepoNotFound")
        elif file not in self.hub.files[repository]:
            commit = commit_of(self.hub.files[repository])
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        else:
            files = self.hub.files[repository]
            self._send(file, files[file], with_body, commit_of(files))

    def _send(self, file: str, data: bytes, with_body: bool, commit: str) -> None:
        is_large = file.endswith((".safetensors", ".bin"))
        hashed = hashlib.sha256(data).hexdigest() if is_large else git_hash(data)
        etag = self.hub.announced.get(file, hashed)
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{etag}"')
        if is_large:
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            sent = self.hub.sends.get(file, data)
            self.wfile.write(sent)
            self.close_connection = len(sent) < len(data)

    def _refuse(self, status: int, name: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in (more or {}).items():
            self.send_header(header, value)
        self.send_header("X-Error-Code", name)
        self.send_header("X-Error-Message", name)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        """What an upload consists of: a new repository, a question, and a commit with the files."""
        self.hub.requests[self.command, self.path] += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repository in self.hub.statuses:
                self._refuse(*self.hub.statuses[repository])
                return
            self.hub.files.setdefault(repository, {})
            self._answer({"url": f"{self.hub.endpoint}/{repository}", "name": repository})
            return
        if self.path == "/api/validate-yaml":  # of a model card
            self._answer({"errors": [], "warnings": []})
            return
        _, _, owner, name, what, _ = self.path.lstrip("/").split("/")
        if what == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files
            ]
            self._answer({"files": modes})
            return
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.files[f"{owner}/{name}"][entry["value"]["path"]] = content
        commit = commit_of(self.hub.files[f"{owner}/{name}"])
        url = f"{self.hub.endpoint}/{owner}/{name}/commit/{commit}"
        self._answer({"commitUrl": url, "commitOid": commit, "success": True})

    def _answer(self, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
