"""Reactors: which one runs; and children and signals, of which uvloop hears in a way of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define

from tests.integration.proxy import Proxy, demo
from tests.integration.world import ProcessWorld, until


@define(eq=False)
class ChosenProxy(Proxy):
    """A proxy on the reactor that was asked for."""

    reactor: str = "uvloop"

    def command(self, *arguments: str) -> list[str]:
        words = super().command(*arguments)
        words.insert(words.index("-n"), f"--reactor={self.reactor}")
        return words


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[ChosenProxy]:
    """One on uvloop with a folder of its own, ended with what it has started."""
    pytest.importorskip("uvloop")
    proxy = ChosenProxy(tmp_path, ProcessWorld(tmp_path))
    try:
        yield proxy
    finally:
        proxy.close()


def test_the_reactor_is_ours_unless_another_is_asked_for(tmp_path: Path) -> None:
    """Where there is epoll it is the lean one; ``--reactor`` has its way."""
    for proxy, name in (
        (Proxy(tmp_path, ProcessWorld(tmp_path)), "llmproxy.reactors.epoll.LeanEPollReactor"),
        (
            ChosenProxy(tmp_path, ProcessWorld(tmp_path), reactor="epoll"),
            "twisted.internet.epollreactor.EPollReactor",
        ),
    ):
        try:
            proxy.configure({"a": demo()}, stop_backends_on_exit=True)
            proxy.start()
            assert f"reactor class: {name}." in proxy.log()
            assert proxy.chat("a").status == 200
        finally:
            proxy.close()


def test_children_and_signals(proxy: ChosenProxy) -> None:
    """It starts a backend, hears at once of its end, reloads on HUP, and ends in order on TERM."""
    proxy.configure({"a": demo()}, stop_backends_on_exit=True)
    proxy.start()
    assert "UvloopReactor" in proxy.log()
    assert proxy.chat("a").status == 200
    proxy.world.kill("a")
    proxy.until_state("a", "absent", seconds=3)
    assert proxy.chat("a").status == 200
    with proxy.streaming("a", tokens=20, delay=0.05) as wire:
        proxy.configure({"a": demo(), "b": demo()}, stop_backends_on_exit=True)
        proxy.hang_up()
        assert proxy.chat("b").status == 200
        assert b"error" not in wire.through(b"data: [DONE]\n\n")
    assert (proxy.world.starts("a"), proxy.world.starts("b")) == (2, 1)
    assert proxy.stop() in (0, -signal.SIGTERM)
    until(lambda: not proxy.world.is_running("a") and not proxy.world.is_running("b"))


def test_a_killed_proxy_adopts(proxy: ChosenProxy) -> None:
    """The next one finds what runs, starts nothing twice, and hears of the end of what it adopted."""
    proxy.configure({"a": demo()})
    proxy.start()
    assert proxy.chat("a").status == 200
    proxy.kill()
    proxy.start()
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 1
    proxy.world.kill("a")
    proxy.until_state("a", "absent", seconds=3)


def test_without_uvloop(tmp_path: Path) -> None:
    """One line says what to install, and nothing is started."""
    # As if it were not installed.
    script = "import sys; sys.modules['uvloop'] = None; from twisted.scripts.twistd import run; run()"
    words = ("--reactor=uvloop", "-n", "--pidfile=", "llmproxy", "--demo")
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "llmproxy: --reactor=uvloop needs uvloop: pip install 'llmproxy[uvloop]'\n"
