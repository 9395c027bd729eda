"""Whoever is slow slows the other side down, and the proxy's memory stays where it is.

The backend is a server of the test's own at a fixed address, which counts what it can get rid of.
"""

from __future__ import annotations

import hashlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.integration.proxy import Proxy, Wire, head, running
from tests.integration.world import until

MIB = 1024 * 1024
BLOCK = bytes(range(256)) * 256
"""64 KiB that are not all the same."""

GROWTH = 16 * MIB
"""Bytes by which the proxy may grow while any of this goes on."""

SMALL = 64 * 1024
"""Socket buffers of the test's own two ends."""


def _largest(what: str) -> int:
    return int(Path(f"/proc/sys/net/ipv4/{what}").read_text().split()[2])


IN_FLIGHT = _largest("tcp_wmem") + _largest("tcp_rmem") + 4 * MIB
"""Bytes that may be on their way: the proxy's socket buffers on both sides, as large as the kernel makes
them, and a little for the ends and the proxy itself."""


@define(eq=False)
class Call:
    """One request to the backend.

    :ivar sent: bytes of answer that the socket has taken.
    :ivar received: bytes of body, or of the tunnel, that were read.
    :ivar over: the other side has ended it.
    :ivar go_on: let it read.
    """

    path: str
    sent: int = 0
    received: int = 0
    over: threading.Event = field(factory=threading.Event)
    go_on: threading.Event = field(factory=threading.Event)


class Backend(socketserver.ThreadingTCPServer):
    """Answers by path."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[Call] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the proxy has ended."""

    def all(self, path: str) -> list[Call]:
        """The requests for that path."""
        return [call for call in self.calls if call.path == path]

    def last(self, path: str) -> Call:
        """The last one of them, once it is there."""
        return until(lambda: self.all(path))[-1]


class _Handler(socketserver.StreamRequestHandler):
    server: Backend
    rbufsize = SMALL

    def setup(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        super().setup()

    def handle(self) -> None:
        while line := self.rfile.readline():
            length = 0
            while (field_line := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = field_line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            path = line.split()[1].decode()
            call = Call(path)
            self.server.calls.append(call)
            try:
                {"/endless": self.endless, "/whole": self.whole, "/upload": self.upload}.get(
                    path.partition("?")[0], self.short
                )(call, length)
                if path in ("/talks", "/deaf"):
                    self.tunnel(call)
                    return
            finally:
                call.over.set()

    def short(self, call: Call, length: int) -> None:
        if call.path not in ("/talks", "/deaf"):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def send_blocks(self, call: Call, count: int) -> None:
        for _ in range(count):
            self.request.sendall(BLOCK)
            call.sent += len(BLOCK)

    def endless(self, call: Call, length: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40))
        self.send_blocks(call, (1 << 40) // len(BLOCK))

    def whole(self, call: Call, length: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1024 * MIB))
        self.send_blocks(call, 1024 * MIB // len(BLOCK))

    def upload(self, call: Call, length: int) -> None:
        """Reads nothing until it is told to, then slowly."""
        call.go_on.wait(30)
        digest = hashlib.sha256()
        while call.received < length:
            data = self.rfile.read(min(4 * MIB, length - call.received))
            if not data:
                return
            call.received += len(data)
            digest.update(data)
            time.sleep(0.02)
        told = digest.hexdigest().encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told))

    def tunnel(self, call: Call) -> None:
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        if call.path == "/talks":
            self.send_blocks(call, (1 << 40) // len(BLOCK))
        call.go_on.wait(30)
        while data := self.request.recv(MIB):
            call.received += len(data)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """It answers while the module's tests run."""
    with Backend() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        for call in server.calls:
            call.go_on.set()
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def proxy(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before it, which has made the buffers that it needs anyway."""
    spec = {"runtime": "url", "engine": "generic", "url": backend.url}
    limits = {"max_body": "300MiB"}
    with running("process", tmp_path_factory.mktemp("proxy"), {"far": spec}, limits=limits) as proxy:
        with proxy.wire() as wire:
            path = unique("/endless")
            wire.send(head("GET", "/far" + path))
            wire.through(b"\r\n\r\n")
            skip(wire, 64 * MIB)
        until(backend.last(path).over.is_set)
        yield proxy
        assert "Traceback" not in proxy.log()


@define
class Memory:
    """The most memory that a process has had since this was made."""

    proxy: Proxy
    before: int = 0

    def __attrs_post_init__(self) -> None:
        # Makes VmHWM what VmRSS is (proc(5)).
        Path(f"/proc/{self.proxy.pid}/clear_refs").write_text("5")
        self.before = self.proxy.resident()

    def growth(self) -> int:
        """In bytes."""
        for line in Path(f"/proc/{self.proxy.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 - self.before
        raise AssertionError("no VmHWM")


@pytest.fixture
def memory(proxy: Proxy) -> Iterator[Memory]:
    """Watched over the whole test."""
    watched = Memory(proxy)
    yield watched
    assert watched.growth() < GROWTH


def skip(wire: Wire, count: int) -> None:
    """Take so many bytes off, and keep none."""
    count -= len(wire.pending)
    assert count >= 0
    wire.pending = b""
    while count:
        data = wire.socket.recv(min(count, MIB))
        assert data
        count -= len(data)


def unique(path: str) -> str:
    """A path that nothing else has asked for."""
    return f"{path}?{time.monotonic_ns()}"


def stands_still(*calls: Call) -> None:
    """Wait until the backend gets rid of nothing more."""
    seen: list[int] = []

    def stands() -> bool:
        nonlocal seen
        before, seen = seen, [call.sent for call in calls]
        return before == seen and all(seen)

    until(stands, 20, every=0.3)


def switch(wire: Wire, path: str) -> None:
    """Ask for a tunnel."""
    wire.send(head("GET", path, "Connection: Upgrade", "Upgrade: websocket"))
    assert wire.through(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


def test_a_slow_client_holds_the_backend_back(proxy: Proxy, backend: Backend, memory: Memory) -> None:
    """At 1 MB/s it gets what is its, in order; the backend is ahead by no more than sockets hold."""
    with proxy.wire(receive_buffer=SMALL) as wire:
        path = unique("/endless")
        wire.send(head("GET", "/far" + path))
        wire.through(b"\r\n\r\n")
        begun, seen = time.monotonic(), 0
        while seen < 3 * MIB:
            assert wire.exactly(len(BLOCK)) == BLOCK
            seen += len(BLOCK)
            time.sleep(max(0.0, begun + seen / MIB - time.monotonic()))
        call = backend.last(path)
        assert call.sent - seen < IN_FLIGHT
        assert proxy.ask("GET", "/healthz", key=None).status == 200
    assert call.over.wait(10)


def test_a_client_that_does_not_read(proxy: Proxy, backend: Backend, memory: Memory) -> None:
    """Nothing moves; it may dribble, or go on at full speed; when it leaves, the backend hears of it."""
    with proxy.wire(receive_buffer=SMALL) as wire:
        path = unique("/endless")
        wire.send(head("GET", "/far" + path))
        call = backend.last(path)
        stands_still(call)
        stood = call.sent
        assert stood < IN_FLIGHT
        for _ in range(500):
            assert len(wire.socket.recv(1)) == 1
        assert call.sent < IN_FLIGHT
        skip(wire, stood + MIB)
        until(lambda: call.sent > stood + MIB)
        assert not call.over.is_set()
    assert call.over.wait(10)


def test_many_clients_that_do_not_read(proxy: Proxy, backend: Backend, memory: Memory) -> None:
    """Each costs the proxy no more than its buffers."""
    path = unique("/endless")
    wires = [proxy.wire(receive_buffer=SMALL) for _ in range(20)]
    try:
        for wire in wires:
            wire.send(head("GET", "/far" + path))
        until(lambda: len(backend.all(path)) == len(wires))
        calls = backend.all(path)
        stands_still(*calls)
        assert max(call.sent for call in calls) < IN_FLIGHT
    finally:
        for wire in wires:
            wire.socket.close()
    for call in calls:
        assert call.over.wait(10)


def test_a_whole_answer(proxy: Proxy, memory: Memory) -> None:
    """1 GiB at full speed is what was sent."""
    expected = hashlib.sha256()
    for _ in range(1024 * MIB // len(BLOCK)):
        expected.update(BLOCK)
    with proxy.wire() as wire:
        wire.send(head("GET", "/far/whole"))
        wire.through(b"\r\n\r\n")
        seen = hashlib.sha256(wire.pending)
        left = 1024 * MIB - len(wire.pending)
        while left:
            data = wire.socket.recv(min(left, MIB))
            assert data
            seen.update(data)
            left -= len(data)
    assert seen.digest() == expected.digest()


def test_a_large_upload_to_a_slow_backend(proxy: Proxy, backend: Backend, memory: Memory) -> None:
    """256 MiB wait in a file and arrive whole, however late the backend reads them."""
    digest = hashlib.sha256()
    path = unique("/upload")
    with proxy.wire() as wire:
        wire.send(head("POST", "/far" + path, f"Content-Length: {256 * MIB}"))
        for number in range(256):
            block = (number.to_bytes(4, "big") + BLOCK[4:]) * 16
            digest.update(block)
            wire.send(block)
        call = backend.last(path)
        assert memory.growth() < GROWTH
        call.go_on.set()
        answer = wire.answer()
    assert call.received == 256 * MIB
    assert answer.body.decode() == digest.hexdigest()


def test_a_tunnel_whose_client_does_not_read(proxy: Proxy, backend: Backend, memory: Memory) -> None:
    """The backend is held back; what it said comes in order once it is read."""
    with proxy.wire(receive_buffer=SMALL) as wire:
        switch(wire, "/far/talks")
        call = backend.last("/talks")
        stands_still(call)
        stood = call.sent
        assert stood < IN_FLIGHT
        for _ in range(stood // len(BLOCK) + 16):
            assert wire.exactly(len(BLOCK)) == BLOCK
    assert call.over.wait(10)


def test_a_tunnel_whose_backend_does_not_read(proxy: Proxy, backend: Backend, memory: Memory) -> None:
    """The client is held back; what it said is all there once it is read."""
    with proxy.wire() as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        switch(wire, "/far/deaf")
        call = backend.last("/deaf")
        wire.socket.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < 4 * IN_FLIGHT:
                sent += wire.socket.send(BLOCK)
        assert sent < IN_FLIGHT
        call.go_on.set()
        until(lambda: call.received == sent)
    assert call.over.wait(10)
