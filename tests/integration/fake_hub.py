"""A small server that speaks as much of the hub's API as huggingface_hub needs for a download."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import define, field

__all__ = ["FakeHub", "serving_hub"]

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@define
class FakeHub:
    """What it has, and what was asked of it.

    :ivar models: files by name, by repository.
    :ivar gated: repositories that want :attr:`token`.
    :ivar held: files that are sent by half, until :attr:`go_on` is set.
    :ivar sizes: what it says of a file's size, where that is not true.
    :ivar fetched: files that were asked for, each time.
    """

    models: Mapping[str, Mapping[str, bytes]]
    token: str = "hf_test"
    gated: set[str] = field(factory=set)
    held: set[str] = field(factory=set)
    sizes: dict[str, int] = field(factory=dict)
    fetched: list[str] = field(factory=list)
    go_on: threading.Event = field(factory=threading.Event)
    port: int = 0


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            api = re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+)|/tree/([^/]+))?", path)
            file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
            repository = api[1] if api else file[1] if file else ""
            found = hub.models.get(repository)
            if found is None:
                # So says the hub itself to those without a token.
                status = 401 if "Authorization" not in self.headers else 404
                self.refuse(status, "RepoNotFound", "Repository not found")
            elif (
                repository in hub.gated
                and file
                and self.headers.get("Authorization") != f"Bearer {hub.token}"
            ):
                self.refuse(403, "GatedRepo", f"Access to model {repository} is restricted")
            elif (api[2] if api else file[2] if file else None) not in (None, "main", _COMMIT):
                self.refuse(404, "RevisionNotFound", "Invalid rev id")
            elif api:
                self.tell(repository, found, tree=api[3] is not None)
            else:
                assert file is not None
                self.give(file[3], found[file[3]], body=body)

        def refuse(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def tell(self, repository: str, files: Mapping[str, bytes], *, tree: bool) -> None:
            size = {name: hub.sizes.get(name, len(data)) for name, data in files.items()}
            told: Any = [
                {"type": "file", "path": name, "size": size[name], "oid": "0" * 40} for name in files
            ]
            if not tree:
                siblings = [{"rfilename": name, "size": size[name], "blobId": "0" * 40} for name in files]
                told = {"id": repository, "sha": _COMMIT, "siblings": siblings}
            data = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def give(self, name: str, data: bytes, *, body: bool) -> None:
            start = 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked is not None:
                start = int(asked[1])
            self.send_response(206 if start else 200)
            self.send_header("ETag", '"' + hashlib.sha1(data).hexdigest() + '"')
            self.send_header("X-Repo-Commit", _COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if not body:
                return
            hub.fetched.append(name)
            try:
                if name in hub.held and not hub.go_on.is_set():
                    half = max(len(data) // 2, start)
                    self.wfile.write(data[start:half])
                    self.wfile.flush()
                    hub.go_on.wait(60)
                    start = half
                self.wfile.write(data[start:])
            except OSError:
                self.close_connection = True

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever downloads may leave at any time."""


@contextmanager
def serving_hub(models: Mapping[str, Mapping[str, bytes]], address: str = "127.0.0.1") -> Iterator[FakeHub]:
    """One that runs, on a free port of that address."""
    hub = FakeHub(models)
    server = _Server((address, 0), _handler(hub))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
