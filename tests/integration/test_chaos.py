"""A short run of ``make chaos`` with each runtime, and how it reads answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.integration.chaos import run as chaos
from tests.integration.chaos.faults import Fault
from tests.integration.chaos.report import Report
from tests.integration.chaos.stage import ROUTES, Stage
from tests.integration.chaos.traffic import Client
from tests.integration.chaos.wire import Conn, read_answer
from tests.integration.private_engine import PrivateEngine, require_private_engine

SECONDS = 10
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def engine() -> Iterator[PrivateEngine]:
    """One that may be restarted."""
    require_private_engine()
    made = PrivateEngine()
    try:
        made.start()
        made.load()
        yield made
    finally:
        made.close()


def look_at(report: Report) -> None:
    """Nothing is wrong, and enough was done for that to say something."""
    print(report)
    assert report.wrong == []
    # Each model answers once before all faults, and once after them.
    assert report.outcomes["right"] > 2 * len(ROUTES) + 5
    done = sum(count for name, count in report.faults.items() if not name.startswith("request: "))
    assert done > 3


@pytest.mark.timeout(240)
def test_processes(tmp_path: Path) -> None:
    """Whatever breaks, each request has one answer, right or visibly not so; in the end all is well."""
    look_at(chaos.run("process", "5", SECONDS, tmp_path, clients=5))


@pytest.mark.docker
@pytest.mark.timeout(120)
def test_a_container_that_ends_takes_the_bridge_from_nobody(engine: PrivateEngine) -> None:
    """Its address stays when the line that has the lowest one is gone."""
    address, line = Path(f"/sys/class/net/{engine.bridge}/address"), f"llmpv{os.getpid()}"
    before = address.read_text()
    for words in (
        ("add", line, "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", f"{line}p"),
        ("set", line, "master", engine.bridge),
    ):
        subprocess.run(["ip", "link", *words], check=True, timeout=10)
    try:
        assert address.read_text() == before
    finally:
        subprocess.run(["ip", "link", "del", line], check=True, timeout=10)
    assert address.read_text() == before


@pytest.mark.docker
@pytest.mark.timeout(300)
def test_containers(engine: PrivateEngine, tmp_path: Path) -> None:
    """The same of containers, whose engine is broken as well."""
    tmp_path.chmod(0o755)
    look_at(chaos.run("docker", "15", SECONDS, tmp_path, engine=engine, clients=5))


class Interrupted(Exception):
    """As by Ctrl-C."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Have the main thread break off what it does."""

    def stop(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, stop)
    yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.timeout(120)
def test_what_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]
) -> None:
    """Just as a fault has ended the proxy and would start another one, and memory is short: nothing is left,
    and nothing is begun any more."""
    stages: list[Stage] = []
    held = threading.Event()

    def made(*words: Any) -> Stage:
        stages.append(Stage(*words))
        return stages[-1]

    def short_of_memory(stage: Stage, _: Random) -> None:
        if "memory" not in stage.absent:
            stage.memory.limited(1 << 28)
            stage.memory.take(stage.look().proxies[-1])
        held.set()
        stage.rest(60)

    def kill(stage: Stage, _: Random) -> None:
        assert held.wait(10)
        with stage.starting:
            for pid in stage.look().proxies:
                os.kill(pid, signal.SIGKILL)
            interrupt()
            time.sleep(1)
            stage.start_proxy()

    monkeypatch.setattr(chaos, "Stage", made)
    monkeypatch.setattr(chaos, "_warm", lambda *_: None)
    monkeypatch.setattr(chaos, "BACKEND_FAULTS", [Fault("memory", short_of_memory)])
    monkeypatch.setattr(chaos, "PROXY_FAULTS", [Fault("proxy killed", kill)])
    before = set(threading.enumerate())
    with pytest.raises(Interrupted):
        chaos.run("process", "6", 60, tmp_path, clients=2)
    (stage,) = stages
    left = [each for each in threading.enumerate() if each not in before and not isinstance(each, Client)]
    assert left == []
    seen = stage.look()
    assert (seen.proxies, seen.backends) == ([], {})
    assert not os.path.ismount(stage.folder / "state")
    assert "memory" in stage.absent or not stage.memory.folder.exists()


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (OK + b"Content-Length: 3\r\n\r\nabc", (200, b"abc", True, "", False)),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", (204, b"", True, "", False)),
        (OK + b"Content-Length: 3\r\n\r\nab", (200, b"ab", False, "eof", False)),
        (CHUNKED + b"1\r\na\r\n0\r\n\r\n", (200, b"a", True, "", False)),
        (CHUNKED + b"1\r\na\r\n", (200, b"a", False, "eof", False)),
        (CHUNKED + b"1\r\nab\r\n", (200, b"a", False, "", True)),
        (b"ICY 200 OK\r\n\r\n", (None, b"", False, "", True)),
        (b"", (None, b"", False, "eof", False)),
    ],
)
def test_reading(raw: bytes, told: tuple[int | None, bytes, bool, str, bool]) -> None:
    """An answer is whole when its framing says so, and only then."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as client:
                client.sendall(raw)

        threading.Thread(target=serve).start()
        conn = Conn(server.getsockname()[1], time.monotonic() + 5)
        read = read_answer(conn)
        conn.close()
    assert (read.status, read.body, read.whole, read.end, bool(read.malformed)) == told
