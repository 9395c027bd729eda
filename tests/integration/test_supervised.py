"""The proxy as a service: on a socket that outlives it, and with a service manager that is told how it is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from attrs import define, field

from tests.integration.proxy import Proxy, demo
from tests.integration.upgraded import Load, processes, upgradable, upgrade
from tests.integration.world import until

RESTARTS = 20

ACTIVATE = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="llmproxy", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Starts a service with a socket, as systemd does (sd_listen_fds(3))."""


@define(eq=False)
class Activated:
    """A proxy on a socket that somebody else keeps."""

    proxy: Proxy
    socket: socket.socket

    def start(self) -> None:
        """Start it; who connects meanwhile waits."""
        proxy = self.proxy
        command = proxy.command()
        command[command.index("--listen") + 1] = "systemd:domain=INET:index=0"
        kept = self.socket.fileno()
        with open(proxy.log_file, "ab") as log:
            proxy.process = subprocess.Popen(
                [sys.executable, "-c", ACTIVATE, str(kept), *command],
                cwd=proxy.folder,
                env=proxy.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[kept],
            )


@contextmanager
def activated(folder: Path) -> Iterator[Activated]:
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        kept.listen(1024)
        with upgradable(folder, {"a": demo()}, start=False) as proxy:
            proxy.port = kept.getsockname()[1]
            one = Activated(proxy, kept)
            one.start()
            until(lambda: proxy.ask("GET", "/healthz", key=None).status == 200, 15)
            yield one


def test_twenty_restarts_refuse_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is in flight finishes, and who comes meanwhile waits for the next process."""
    with activated(tmp_path) as service:
        proxy = service.proxy
        assert proxy.chat("a").status == 200
        with Load(proxy) as load:
            load.more("fresh", 3, lambda: load.fresh(0.02))
            load.more("stream", 2, lambda: load.streams(20, 0.02))
            for _ in range(RESTARTS):
                answered = load.answered["stream"]
                until(lambda: load.failed or load.answered["stream"] > answered)  # noqa: B023
                time.sleep(0.1)
                # twistd ends by the signal that ended it.
                assert proxy.stop() == -signal.SIGTERM
                service.start()
        assert load.failed == []
        assert proxy.world.starts("a") == 1
        with capsys.disabled():
            print(f"\n  answers: {dict(load.answered)}, longest: {load.longest}")


def test_an_upgrade_keeps_an_activated_socket(tmp_path: Path) -> None:
    """The new process has it from the old one, may read its configuration again, and gives it on."""
    with activated(tmp_path) as service:
        proxy = service.proxy
        for _ in range(2):
            done = upgrade(proxy)
            assert done.status == 200, done
            assert proxy.chat("a").status == 200
        until(lambda: processes(proxy) == [done.json["pid"]])
        before = len(proxy.log())
        os.kill(done.json["pid"], signal.SIGHUP)
        until(lambda: "configuration read again" in proxy.log()[before:])
        os.kill(done.json["pid"], signal.SIGTERM)
        until(lambda: not processes(proxy))
        proxy.wait()
        service.start()
        assert proxy.chat("a").status == 200


@define(eq=False)
class Manager:
    """Hears what a service tells (sd_notify(3))."""

    path: str
    heard: list[tuple[float, str]] = field(factory=list)
    _socket: socket.socket = field(factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    _thread: threading.Thread | None = None

    def __enter__(self) -> Manager:
        self._socket.bind("\0" + self.path[1:] if self.path.startswith("@") else self.path)
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        assert self._thread is not None
        self._thread.join()
        self._socket.close()

    def _hear(self) -> None:
        while message := self._socket.recv(4096):
            self.heard += [(time.monotonic(), line) for line in message.decode().splitlines()]

    def until(self, line: str, after: int = 0) -> int:
        """Wait for a line that begins so; how many lines there were with it."""

        def found() -> int:
            lines = [text for _, text in self.heard]
            return next((at + 1 for at in range(after, len(lines)) if lines[at].startswith(line)), 0)

        return until(found)


@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    """That it serves, reads its configuration again, gives its place away, and ends; all the time that it is
    well."""
    path = f"@llmproxy-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "300000"}
    with Manager(path) as manager, upgradable(tmp_path, {"a": demo()}, environment=environment) as proxy:
        ready = manager.until("READY=1")
        manager.until("STATUS=llmproxy ", ready)
        proxy.hang_up()
        reloading = manager.until("RELOADING=1", ready)
        assert manager.heard[reloading][1].startswith("MONOTONIC_USEC=")
        again = manager.until("READY=1", reloading)
        done = upgrade(proxy)
        assert done.status == 200, done
        manager.until(f"MAINPID={done.json['pid']}", again)
        manager.until("READY=1", again)
        until(lambda: processes(proxy) == [done.json["pid"]])
        assert not any(line.startswith("STOPPING") for _, line in manager.heard)
        time.sleep(1)
        pings = [at for at, line in manager.heard if line == "WATCHDOG=1"]
        assert max(later - at for at, later in pairwise(pings)) < 0.3
        last = len(manager.heard)
        os.kill(done.json["pid"], signal.SIGTERM)
        stopping = manager.until("STOPPING=1", last)
        assert int(manager.heard[stopping][1].removeprefix("EXTEND_TIMEOUT_USEC=")) >= 30_000_000
        until(lambda: not processes(proxy))
