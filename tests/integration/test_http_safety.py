"""What a real proxy lets through to a backend that writes down every byte, and whom it does not wait for."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from llmproxy.reactors.descriptors import RESERVE
from tests.integration.proxy import ADMIN, KEY, Proxy, Wire, demo, running
from tests.integration.world import until
from tests.unit.http_cases import ANSWERED, HIDDEN, REFUSED, SECOND, SERVED, TOO_LARGE
from tests.unit.test_smuggling import Reader

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
KEYS = [
    {"name": "table", "secret": "client"},
    {"name": "site", "secret": KEY},
    {"name": "boss", "secret": ADMIN, "admin": True},
]


class RawBackend:
    """Writes down what comes and answers with ``ok``; of HTTP it knows a length and an empty line.

    :ivar streams: what came on each connection.
    """

    def __init__(self) -> None:
        self.streams: list[bytearray] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        stream = bytearray()
        self.streams.append(stream)
        at = 0
        # The proxy ends what it does not use again.
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                stream += data
                while (end := stream.find(b"\r\n\r\n", at) + 4) >= 4:
                    head = bytes(stream[at:end])
                    told = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
                    if len(stream) < end + (length := int(told[1]) if told else 0):
                        break
                    at = end + length
                    connection.sendall(OK if head.startswith(b"HEAD ") else OK + b"ok")

    def seen(self) -> list[bytes]:
        """What came on connections of clients, and not of health probes."""
        return [bytes(one) for one in self.streams if one and not one.startswith(b"GET /health ")]

    def since(self, before: list[bytes]) -> list[bytes]:
        """What has come since, on each connection."""
        now = self.seen()
        fresh = (each.removeprefix(before[at]) if at < len(before) else each for at, each in enumerate(now))
        return [each for each in fresh if each]


@pytest.fixture(scope="module")
def backend() -> Iterator[RawBackend]:
    """For the whole module."""
    made = RawBackend()
    yield made
    made.listener.close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, backend: RawBackend) -> Iterator[Proxy]:
    """A proxy in front of it, with little patience."""
    spec = {"runtime": "url", "engine": "generic", "url": f"http://127.0.0.1:{backend.port}"}
    limits = {"max_body": 10_000, "head_timeout": "2s", "body_timeout": "2s", "idle_timeout": "20s"}
    folder = tmp_path_factory.mktemp("safety")
    with running("process", folder, {"coder": spec}, keys=KEYS, limits=limits) as made:
        until(lambda: made.state("coder") == "ready", 10)
        yield made
        assert "Traceback" not in made.log()


def test_nothing_smuggled_arrives(proxy: Proxy, backend: RawBackend) -> None:
    """Each request of the table, over a socket: what is refused leaves no byte at the backend, and what is
    served is one request there, with the client's next one behind it."""
    expected = 0
    refused = {name: (wire, 400) for name, wire in REFUSED.items()} | TOO_LARGE
    for name, (wire, status) in refused.items():
        before = backend.seen()
        with proxy.wire() as client:
            # It may be refused before all of it has been sent.
            with contextlib.suppress(ConnectionError):
                client.send(wire + HIDDEN + SECOND)
            answers = client.rest()
        assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"%d" % status], name
        assert backend.since(before) == [], name
    for name, (wire, target, body) in SERVED.items():
        before = backend.seen()
        with proxy.wire() as client:
            client.send(wire + SECOND)
            assert client.answer(bodiless=wire.startswith(b"HEAD")).status == 200, name
            assert client.answer().status == 200, name
        # The second may go out on a connection that was free before.
        found = [(one[1], one[3]) for came in backend.since(before) for one in Reader(came).found]
        assert sorted(found) == sorted([(target, body), (b"/second", b"")]), name
        expected += 2
    for name, (wire, status) in ANSWERED.items():
        before = backend.seen()
        with proxy.wire() as client:
            client.send(wire)
            assert client.answer().status == status, name
        assert backend.since(before) == [], name
    everything = b"".join(backend.seen())
    assert len(Reader(everything).found) == expected
    assert [one for one in Reader(everything).found if one[1] == b"/hidden"] == []


def test_slow_heads_do_not_keep_others_out(proxy: Proxy) -> None:
    """A hundred connections of a byte now and then are closed; all the while others are served."""
    slow = [proxy.wire() for _ in range(100)]
    began = time.monotonic()
    open_ones = set(slow)
    try:
        for each in slow:
            each.send(b"GET /coder/x HTTP/1.1\r\nHost: h\r\nX: ")
        while open_ones and time.monotonic() - began < 15:
            assert proxy.ask("GET", "/coder/quick").status == 200
            for each in list(open_ones):
                try:
                    each.send(b"y")
                except ConnectionError:
                    open_ones.discard(each)
            time.sleep(0.2)
        assert not open_ones
        assert time.monotonic() - began > 2
    finally:
        for each in slow:
            each.socket.close()


def test_a_slow_body_is_told(proxy: Proxy) -> None:
    """408, in the words of the API."""
    with proxy.wire() as client:
        client.send(b"POST /coder/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab")
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (408, "invalid_request")
        assert client.rest() == b""


def _open_files(proxy: Proxy) -> int:
    return len(os.listdir(f"/proc/{proxy.pid}/fd"))


def _processor_seconds(proxy: Proxy) -> float:
    fields = Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_descriptors_new_connections_wait(proxy: Proxy) -> None:
    """They are served when there are some again; until then the proxy goes on serving those it has, at rest,
    and tells it once."""
    with proxy.wire() as old:
        old.send(b"GET /coder/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer client\r\n\r\n")
        assert old.answer().status == 200
        usual = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
        waiting: list[Wire] = []
        try:
            few = _open_files(proxy) + RESERVE + 5
            resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (few, usual[1]))
            for _ in range(20):
                client = proxy.wire()
                waiting.append(client)
                client.send(b"GET /coder/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer client\r\n\r\n")
            until(lambda: "no file descriptor is left" in proxy.log(), 10)
            before = _processor_seconds(proxy)
            time.sleep(2)
            assert _processor_seconds(proxy) - before < 0.6
            old.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert old.answer().status == 200
            resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, usual)
            assert all(client.answer().status == 200 for client in waiting)
        finally:
            for client in waiting:
                client.socket.close()
            resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, usual)
    assert proxy.log().count("no file descriptor is left") == 1
    assert proxy.ask("GET", "/coder/x").status == 200


def test_who_takes_nothing_is_cut(tmp_path: Path) -> None:
    """A client that stops to read its stream is let go, and its backend with it."""
    limits = {"write_timeout": "2s"}
    with running("process", tmp_path, {"a": demo()}, limits=limits) as proxy:
        assert proxy.chat("a").status == 200
        with proxy.wire(receive_buffer=4096) as client:
            path = "/a/big?bytes=200000000&chunked=1"
            client.send(f"GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
            began = time.monotonic()
            until(lambda: "outcome=client_gone" in proxy.log(), 20)
            assert time.monotonic() - began > 1.5


def test_too_few_descriptors_are_told(tmp_path: Path) -> None:
    """The proxy starts, says so, and serves as many connections as it can."""
    spec = {"runtime": "url", "engine": "generic", "url": "http://127.0.0.1:9"}
    with running("process", tmp_path, {"coder": spec}, start=False) as proxy:
        command = proxy.command()
        limited = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *command]
        with mock.patch.object(Proxy, "command", return_value=limited):
            proxy.start()
        line = next(each for each in proxy.log().splitlines() if "files may be open" in each)
        most = int(re.findall(r"at most (\d+) connections", line)[0])
        assert 20 < most < 128
        clients = [proxy.wire() for _ in range(most + 10)]
        try:
            for client in clients[most:]:
                client.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            answers = [client.answer() for client in clients[most:]]
            assert {answer.status for answer in answers} == {503}
            assert answers[0].header("retry-after") == "5"
        finally:
            for client in clients:
                client.socket.close()
        until(lambda: proxy.ask("GET", "/healthz").status == 200)
