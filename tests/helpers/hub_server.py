"""A real HTTP server on 127.0.0.1 that plays the Hub for the real client.

It lists repositories, redirects large files to a CDN on another origin, answers ranges, and
misbehaves on demand. It writes down every request.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["Fault", "HubServer", "Request"]

_LARGE = (".safetensors", ".npz", ".bin", ".h5")
_BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Request:
    """One request; its headers' names are in title case."""

    method: str
    path: str
    headers: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """What to do once, instead of the right answer, to a request whose path has `match`.

    Attributes:
        match: Part of the path.
        status: The status to answer with; 0 keeps the answer and cuts or holds it.
        headers: More headers.
        body: The body to answer with.
        cut_after: Bytes of the body after which the connection is closed.
        hold_after: Bytes of the body after which `reached` is set, and `release` awaited.
        ignore_range: Answer 200 with everything to a range.
        times: How many requests it meets.
    """

    match: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    hold_after: int | None = None
    ignore_range: bool = False
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Repository:
    files: dict[str, bytes]
    revisions: dict[str, str]
    gated: bool
    sizes: bool

    def commit(self, revision: str) -> str | None:
        return self.revisions.get(revision, revision if revision in self._commits() else None)

    def _commits(self) -> set[str]:
        return set(self.revisions.values())


class HubServer:
    """The server; a context manager."""

    def __init__(self) -> None:
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        # Another origin, so that the client must not send its token there.
        self.cdn = f"http://localhost:{self.port}"
        self.repositories: dict[str, _Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for fault in self.faults:
            fault.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes],
        *,
        revisions: tuple[str, ...] = ("main",),
        gated: bool = False,
        sizes: bool = True,
    ) -> str:
        """Publish a repository; gives its commit."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, data in sorted(files.items()):
            digest.update(name.encode() + data)
        commit = digest.hexdigest()
        self.repositories[repo] = _Repository(
            dict(files), dict.fromkeys(revisions, commit), gated, sizes
        )
        return commit

    def fail(self, fault: Fault) -> Fault:
        """Misbehave: faults are used up in order."""
        self.faults.append(fault)
        return fault

    def paths(self, match: str = "", method: str = "GET") -> list[str]:
        """List the paths of the requests so far that have `match`."""
        return [r.path for r in self.requests if match in r.path and r.method == method]

    def take_fault(self, path: str) -> Fault | None:
        """Use up one fault."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.match in path:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        hub = self.server_hub
        path = unquote(urlsplit(self.path).path)
        headers = {name.title(): value for name, value in self.headers.items()}
        with hub.lock:
            hub.requests.append(Request(self.command, path, headers))
        fault = hub.take_fault(path)
        try:
            if fault is not None and fault.status:
                self._send(fault.status, fault.body, dict(fault.headers), fault)
            else:
                self._answer(path.strip("/").split("/"), fault)
        except ConnectionError:
            self.close_connection = True  # the client has gone

    def _answer(self, parts: list[str], fault: Fault | None) -> None:
        hub = self.server_hub
        if parts[0] == "cdn":
            blobs = {
                hashlib.sha256(data).hexdigest(): data
                for repository in hub.repositories.values()
                for data in repository.files.values()
            }
            self._send_file(blobs[parts[1]], {"ETag": f'"{parts[1]}"'}, fault)
            return
        if self.headers.get("Authorization") == "Bearer bad":
            self._send(401, b"", {"X-Error-Message": _BAD_TOKEN}, fault)
            return
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        repo, parts = "/".join(parts[:2]), parts[2:]
        repository = hub.repositories.get(repo)
        if repository is None:
            said = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self._send(404, b"", said, fault)
        elif is_api:
            self._answer_api(repo, repository, parts, fault)
        elif repository.gated:
            said = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
            self._send(403, b"", said, fault)
        else:
            self._resolve(repository, parts, fault)

    def _answer_api(
        self, repo: str, repository: _Repository, parts: list[str], fault: Fault | None
    ) -> None:
        commit = repository.commit("/".join(parts[1:]) or "main")
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, fault)
            return
        entries: list[dict[str, Any]] = []
        for name, data in repository.files.items():
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
            entry: dict[str, Any] = {"oid": oid.hexdigest(), "size": len(data)}
            if name.endswith(_LARGE):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            if parts[0] == "tree":
                if "lfs" in entry:
                    entry["lfs"]["oid"] = entry["lfs"].pop("sha256")
                entries.append({"type": "file", "path": name, **entry})
            elif repository.sizes:
                entry["blobId"] = entry.pop("oid")
                entries.append({"rfilename": name, **entry})
            else:
                entries.append({"rfilename": name})
        answer: object = entries
        if parts[0] != "tree":
            answer = {"id": repo, "sha": commit, "siblings": entries}
        body = json.dumps(answer).encode()
        self._send(200, body, {"Content-Type": "application/json"}, fault)

    def _resolve(self, repository: _Repository, parts: list[str], fault: Fault | None) -> None:
        revision, name = "/".join(parts[1:-1]), parts[-1]
        commit = repository.commit(revision)
        if commit is None or name not in repository.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, fault)
            return
        data = repository.files[name]
        headers = {"X-Repo-Commit": commit}
        if name.endswith(_LARGE):
            sha256 = hashlib.sha256(data).hexdigest()
            headers["X-Linked-Etag"] = f'"{sha256}"'
            headers["X-Linked-Size"] = str(len(data))
            headers["Location"] = f"{self.server_hub.cdn}/cdn/{sha256}"
            self._send(302, b"", headers, fault)
        else:
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
            headers["ETag"] = f'"{oid.hexdigest()}"'
            self._send_file(data, headers, fault)

    def _send_file(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        if asked and not (fault is not None and fault.ignore_range):
            begin = int(asked)
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(206, data[begin:], headers, fault)
        else:
            self._send(200, data, headers, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.hold_after is not None:
            self.wfile.write(body[: fault.hold_after])
            self.wfile.flush()
            fault.reached.set()
            fault.release.wait()
            body = body[fault.hold_after :]
        if fault is not None and fault.cut_after is not None:
            body = body[: fault.cut_after]
            self.close_connection = True
        self.wfile.write(body)
