"""A proxy for Docker's socket that passes on what deploy/compose allows, and writes down every call.

It stands in for the images that the compose files name, which no test can download: it reads the same
settings, those of tecnativa/docker-socket-proxy (variables) or wollomatic/socket-proxy (flags), and decides
as they do.  It uses only what every Python has, and so runs in any container.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any
from urllib.parse import unquote

__all__ = ["SocketProxy", "by_flags", "by_variables", "shape"]

Rules = Callable[[str, str, bytes], bool]
"""Whether a call may be made: its method, its path without the query, and its body."""

_VERSION = r"^(/v[\d.]+)?"
_SECTIONS = (
    *("auth", "build", "commit", "configs", "containers", "distribution", "events", "exec", "grpc", "images"),
    *("info", "networks", "nodes", "plugins", "secrets", "services", "session", "swarm", "system", "tasks"),
    *("version", "volumes"),
)
_SINGLE = ("exec", "kill", "attach", "archive", "export", "logs")
"""Calls to a container that have to be allowed one by one."""


def by_variables(settings: Mapping[str, str]) -> Rules:
    """As tecnativa/docker-socket-proxy decides."""

    def on(name: str) -> bool:
        return settings.get(name) == "1"

    def allows(method: str, path: str, _: bytes) -> bool:
        path = unquote(path)
        if method != "GET" and not (method == "HEAD" or on(method)):
            return False
        for verb in _SINGLE:
            if re.match(rf"{_VERSION}/containers/[a-zA-Z0-9_.-]+/{verb}", path) and not on(
                f"ALLOW_{verb.upper()}"
            ):
                return False
        if re.match(rf"{_VERSION}/_ping", path):
            return on("PING")
        return any(re.match(rf"{_VERSION}/{name}", path) and on(name.upper()) for name in _SECTIONS)

    return allows


def by_flags(flags: Sequence[str]) -> Rules:
    """As wollomatic/socket-proxy decides: a pattern for the whole path, by method."""
    allowed: dict[str, list[re.Pattern[str]]] = {}
    folders: list[str] | None = None
    for flag in flags:
        name, _, value = flag.lstrip("-").partition("=")
        if name == "allowbindmountfrom":
            folders = value.split(",")
        elif name.startswith("allow") and name[5:].isupper():
            allowed.setdefault(name[5:], []).append(re.compile(value))

    def allows(method: str, path: str, body: bytes) -> bool:
        if not any(form.fullmatch(path) for form in allowed.get(method, ())):
            return False
        if folders is None or not path.endswith("/containers/create"):
            return True
        return all(any(_inside(source, folder) for folder in folders) for source in _mounted(body))

    return allows


def _inside(path: str, folder: str) -> bool:
    return PurePosixPath(folder) in (PurePosixPath(path), *PurePosixPath(path).parents) and ".." not in path


def _mounted(body: bytes) -> list[str]:
    host = json.loads(body).get("HostConfig") or {}
    binds = [str(bind).partition(":")[0] for bind in host.get("Binds") or ()]
    mounts = [str(each.get("Source")) for each in host.get("Mounts") or () if each.get("Type") == "bind"]
    return [source for source in (*binds, *mounts) if source.startswith("/")]


def shape(method: str, path: str) -> str:
    """A call without its version, and without the names in it.

    >>> shape("GET", "/v1.41/containers/coder3b/json")
    'GET /containers/{name}/json'
    """
    path = re.sub(r"^/v[\d.]+", "", path)
    path = re.sub(r"^/images/.+/json$", "/images/{name}/json", path)

    def named(match: re.Match[str]) -> str:
        return match[0] if match[2] in ("json", "create", "prune") else f"/{match[1]}/{{name}}"

    path = re.sub(r"^/(containers|networks|volumes)/([^/]+)", named, path)
    return f"{method} {path}"


class SocketProxy:
    """Listens, decides, passes on, and writes down.

    :ivar calls: :func:`shape` of each call that was made, and whether it was passed on.
    """

    def __init__(self, rules: Rules, engine: str, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.calls: list[tuple[str, bool]] = []
        proxy = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.rfile, self.connection)

        class Server(ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._rules = rules
        self._engine = engine
        self._server = Server(address, Handler)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def __enter__(self) -> SocketProxy:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """Until it is ended."""
        self._server.serve_forever()

    def asked(self, *, passed: bool = True) -> set[str]:
        """What was passed on, or refused."""
        return {call for call, was in self.calls if was is passed}

    def _serve(self, file: Any, client: socket.socket) -> None:
        line = file.readline(65536).decode("latin-1")
        if not line.strip():
            return
        method, target, _ = line.split(" ", 2)
        fields, length, chunked = [], 0, False
        while (field := file.readline(65536)) not in (b"\r\n", b"\n", b""):
            name, _, value = field.decode("latin-1").partition(":")
            if name.lower() == "content-length":
                length = int(value)
            elif name.lower() == "transfer-encoding":
                chunked = True
            elif name.lower() not in ("connection", "upgrade"):
                fields.append(field)
        body = self._chunks(file) if chunked else file.read(length)
        path = target.partition("?")[0]
        passed = self._rules(method, path, body)
        self.calls.append((shape(method, path), passed))
        sys.stdout.write(f"{'passed' if passed else 'refused'} {shape(method, path)}\n")
        sys.stdout.flush()
        if not passed:
            text = json.dumps({"message": f"not allowed by the socket proxy: {method} {path}"}).encode()
            head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n"
            client.sendall(
                head + b"Content-Length: %d\r\n\r\n" % len(text) + (text if method != "HEAD" else b"")
            )
            return
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(self._engine)
            head = f"{method} {target} HTTP/1.1\r\n".encode("latin-1") + b"".join(fields)
            engine.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            self._relay(engine, client)

    @staticmethod
    def _chunks(file: Any) -> bytes:
        body = b""
        while size := int(file.readline(100).split(b";")[0], 16):
            body += file.read(size)
            file.readline(10)
        file.readline(10)
        return body

    @staticmethod
    def _relay(engine: socket.socket, client: socket.socket) -> None:
        def gone() -> None:
            # Who leaves a stream of events leaves the engine's, too.
            with suppress(OSError):
                while client.recv(1024):
                    pass
            with suppress(OSError):
                engine.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=gone, daemon=True).start()
        with suppress(OSError):
            while data := engine.recv(65536):
                client.sendall(data)


if __name__ == "__main__":
    flagged = sys.argv[1:]
    SocketProxy(
        by_flags(flagged) if flagged else by_variables(os.environ), "/var/run/docker.sock", ("0.0.0.0", 2375)
    ).serve()
