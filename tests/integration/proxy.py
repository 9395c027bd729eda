"""The proxy as others see it: started by ``twistd`` in a folder of its own, asked over the network, killed.

:class:`Proxy` is one proxy and its folder; it may be ended and started again on the same port.
:class:`Wire` is a connection that says exactly what a test wants to say.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from attrs import define, field, frozen

from tests.integration.docker_world import DockerWorld
from tests.integration.world import ROOT, ProcessWorld, World, until

__all__ = [
    "ADMIN",
    "KEY",
    "NOT_RELOADED",
    "READ_AGAIN",
    "Answer",
    "Demo",
    "Proxy",
    "Wire",
    "at_once",
    "chat",
    "content",
    "demo",
    "free_port",
    "running",
]

KEY = "client-key-for-tests"
ADMIN = "admin-key-for-tests"
BACKEND_KEY = "backend-key-for-tests"
PATIENCE = 20.0
"""Seconds after which a client of a test gives up."""

RELOADS = READ_AGAIN, NOT_RELOADED = ("configuration read again", "not reloaded")
"""What it says when it has been told to read its configuration again."""

_T = TypeVar("_T")


@frozen
class Demo:
    """A demo server behind a route: its arguments, and its fields in llmproxy.yaml."""

    arguments: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(factory=dict)


def demo(*arguments: str, **settings: Any) -> Demo:
    """A demo server with these arguments and these fields in llmproxy.yaml."""
    return Demo(arguments, settings)


@frozen
class Answer:
    """A whole answer; header names as they came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first field of that name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object in the body."""
        found = self.json["error"]
        assert isinstance(found, dict)
        return found


def chat(model: str, words: str = "Hello there", **more: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": model, "messages": [{"role": "user", "content": words}], **more}


def content(stream: bytes) -> str:
    """The text that an event stream of a chat completion has told."""
    text = ""
    for line in stream.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", []):
                text += choice["delta"].get("content") or ""
    return text


def at_once(count: int, what: Callable[[int], _T]) -> list[_T]:
    """Call ``what`` with 0, 1, ... in so many threads at the same moment."""
    barrier = threading.Barrier(count)

    def one(number: int) -> _T:
        barrier.wait(PATIENCE)
        return what(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class Wire:
    """A connection to the proxy, byte for byte."""

    def __init__(self, port: int, *, address: str = "127.0.0.1", receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect((address, port))
        except OSError:
            self.socket.close()
            raise
        self.pending = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send that."""
        self.socket.sendall(data)

    def post(self, path: str, body: bytes, *fields: str, key: str | None = KEY) -> None:
        """Send a POST request whole."""
        self.send(head("POST", path, f"Content-Length: {len(body)}", *fields, key=key) + body)

    def some(self) -> bytes:
        """What comes next; nothing at the end of the connection, however it came."""
        if self.pending:
            data, self.pending = self.pending, b""
            return data
        try:
            return self.socket.recv(65536)
        except ConnectionError:
            return b""

    def through(self, marker: bytes) -> bytes:
        """All up to and including the marker.

        :raises AssertionError: the connection ended before.
        """
        seen = b""
        while marker not in seen:
            data = self.some()
            assert data, f"ended without {marker!r}: {seen[-2000:]!r}"
            seen += data
        before, _, self.pending = seen.partition(marker)
        return before + marker

    def exactly(self, count: int) -> bytes:
        """So many bytes."""
        seen = b""
        while len(seen) < count:
            data = self.some()
            assert data, f"ended after {len(seen)} bytes"
            seen += data
        seen, self.pending = seen[:count], seen[count:]
        return seen

    def rest(self) -> bytes:
        """All up to the end of the connection."""
        seen = b""
        while data := self.some():
            seen += data
        return seen

    def answer(self, *, bodiless: bool = False) -> Answer:
        """One answer with ``Content-Length`` or in chunks (or bodiless, as to HEAD)."""
        lines = self.through(b"\r\n\r\n").decode("latin-1").split("\r\n")
        fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:-2])]
        found = Answer(int(lines[0].split()[1]), fields, b"")
        length = found.header("content-length")
        body = b""
        if bodiless or found.status in (101, 204, 304):
            pass
        elif found.header("transfer-encoding"):
            while size := int(self.through(b"\r\n"), 16):
                body += self.exactly(size)
                self.exactly(2)
            self.exactly(2)
        elif length is None:
            body = self.rest()
        else:
            body = self.exactly(int(length))
        return Answer(found.status, fields, body)


def head(method: str, target: str, *fields: str, key: str | None = KEY, version: str = "1.1") -> bytes:
    """A request's head."""
    lines = [f"{method} {target} HTTP/{version}", "Host: proxy.test", *fields]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


_ACCESS = re.compile(r"(\w+)=(\S*)")


@define(eq=False)
class Proxy:
    """One proxy in one folder."""

    folder: Path
    world: World
    port: int = field(factory=free_port)
    environment: dict[str, str] = field(factory=dict)
    config: dict[str, Any] = field(factory=dict)
    process: subprocess.Popen[bytes] | None = None
    address: str = "127.0.0.1"

    # -- the process --------------------------------------------------------------------------------

    @property
    def file(self) -> Path:
        """Its llmproxy.yaml."""
        return self.folder / "llmproxy.yaml"

    @property
    def log_file(self) -> Path:
        """What it writes."""
        return self.folder / "proxy.log"

    def configure(self, backends: Mapping[str, Demo | dict[str, Any]], **top: Any) -> None:
        """Write llmproxy.yaml."""
        specs = {
            route: self.world.spec(route, *each.arguments, **each.settings)
            if isinstance(each, Demo)
            else each
            for route, each in backends.items()
        }
        self.config = {
            "state_dir": str(self.folder / "state"),
            "keys": [{"name": "site", "secret": KEY}, {"name": "boss", "secret": ADMIN, "admin": True}],
            **top,
            "backends": specs,
        }
        self.file.write_text(yaml.safe_dump(self.config))

    def environ(self) -> dict[str, str]:
        """A small environment that nothing of this machine reaches into."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "VLLM_API_KEY": BACKEND_KEY,
            **self.world.environment(),
            **self.environment,
        }

    def command(self, *arguments: str) -> list[str]:
        """How it is started."""
        twistd = str(Path(sys.executable).parent / "twistd")
        listen = f"tcp:{self.port}:interface={self.address}"
        base = [sys.executable, twistd, "-n", "--pidfile=", "llmproxy", "--config", str(self.file)]
        return [*base, "--listen", listen, *arguments]

    def start(self, *arguments: str, seconds: float = 15.0) -> None:
        """Start it and wait until it answers."""
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self._answers, seconds)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the proxy ended:\n{self.log()}"
        try:
            return self.ask("GET", "/healthz", key=None).status == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def term(self) -> None:
        """Ask it to end."""
        os.kill(self.pid, signal.SIGTERM)

    def hang_up(self, pid: int | None = None, *, seconds: float = 10.0) -> str:
        """Ask it to read its configuration again, and wait until it has; which of :data:`RELOADS` it says.

        :param pid: of the process that serves now, if that is not the one that was started here.
        """
        before = len(self.log())
        os.kill(pid or self.pid, signal.SIGHUP)

        def told() -> str | None:
            log = self.log()[before:]
            return next((mark for mark in RELOADS if mark in log), None)

        return until(told, seconds) or ""

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> int:
        """TERM, and its exit status: twistd ends by the signal that ended it, after an orderly end."""
        self.term()
        return self.wait()

    def kill(self) -> None:
        """KILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """End it and its backends, whatever state they are in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.world.close()
        if self.log_file.exists():
            print(f"--- the log of the proxy on port {self.port}\n{self.log()[-20_000:]}")

    def resident(self) -> int:
        """Bytes of memory that it has at present."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    # -- what it says -------------------------------------------------------------------------------

    def log(self) -> str:
        """All that it has written."""
        return self.log_file.read_text(errors="replace")

    def access(self, request_id: str) -> dict[str, str]:
        """The access log's fields for a request, once they are there."""

        def line() -> str | None:
            wanted = f" request_id={request_id} "
            return next((each for each in self.log().splitlines() if wanted in each), None)

        return dict(_ACCESS.findall(until(line) or ""))

    # -- asking it ----------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        *,
        key: str | None = KEY,
    ) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        connection, response = self.open(method, path, body, headers, key=key)
        try:
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def open(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        *,
        key: str | None = KEY,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Ask, and return when the head of the answer has come."""
        fields = dict(headers)
        if key is not None:
            fields["Authorization"] = f"Bearer {key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            fields.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(self.address, self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, fields)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def chat(self, route: str, *, headers: Mapping[str, str] = {}, key: str = KEY, **more: Any) -> Answer:
        """A chat completion by the route's model."""
        return self.ask("POST", "/v1/chat/completions", chat(f"{route}-model", **more), headers, key=key)

    def wire(self, **options: Any) -> Wire:
        """A connection of one's own."""
        return Wire(self.port, address=self.address, **options)

    @contextmanager
    def streaming(
        self, route: str, *, tokens: int = 10_000, delay: float = 0.02, **more: Any
    ) -> Iterator[Wire]:
        """A stream of which the first tokens have come."""
        body = chat(
            f"{route}-model", stream=True, ignore_eos=True, max_tokens=tokens, demo_token_delay=delay, **more
        )
        with self.wire() as wire:
            wire.post("/v1/chat/completions", json.dumps(body).encode(), "Content-Type: application/json")
            wire.through(b"\r\n\r\n")
            wire.through(b'"content":"You"')
            yield wire

    def backend(self, route: str) -> dict[str, Any]:
        """What the admin API says of it."""
        found = self.ask("GET", f"/api/backends/{route}", key=ADMIN)
        assert found.status == 200, found
        view = found.json
        assert isinstance(view, dict)
        return view

    def state(self, route: str) -> str:
        """Its state."""
        return str(self.backend(route)["state"])

    def until_state(self, route: str, *states: str, seconds: float = 10.0) -> None:
        """Wait for one of these states."""
        until(lambda: self.state(route) in states, seconds)

    def until_waiting(self, route: str, count: int) -> None:
        """Wait until so many requests are held."""
        until(lambda: self.backend(route)["waiting"] == count)

    def act(self, route: str, verb: str, query: str = "?wait=1") -> Answer:
        """Have the operator do something."""
        return self.ask("POST", f"/api/backends/{route}/{verb}{query}", key=ADMIN)

    def stats(self, route: str) -> dict[str, Any]:
        """The demo server's own account."""
        found = self.ask("GET", f"/{route}/demo/stats").json
        assert isinstance(found, dict)
        return found


_WORLDS: dict[str, Callable[[Path], World]] = {"process": ProcessWorld, "docker": DockerWorld}


@contextmanager
def running(
    kind: str,
    folder: Path,
    backends: Mapping[str, Demo | dict[str, Any]],
    *,
    environment: Mapping[str, str] = {},
    start: bool = True,
    **top: Any,
) -> Iterator[Proxy]:
    """A proxy with these backends; ended, with all that it started, in any case.

    :param kind: where the backends live.
    :param top: further settings at the top of llmproxy.yaml.
    """
    proxy = Proxy(folder, _WORLDS[kind](folder), environment=dict(environment))
    try:
        proxy.configure(backends, **top)
        if start:
            proxy.start()
        yield proxy
    finally:
        proxy.close()
