"""What the proxy does while the Docker engine is away, and when it is back.

A second engine of their own is what these tests kill and restart; see
:func:`tests.integration.private_engine.require_private_engine` for where they are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.docker_world import DockerWorld
from tests.integration.private_engine import PrivateEngine, require_private_engine
from tests.integration.proxy import Answer, Demo, Proxy, chat, demo
from tests.integration.world import until

pytestmark = pytest.mark.docker

Launch = Callable[..., Proxy]


@pytest.fixture(scope="module")
def loaded() -> Iterator[PrivateEngine]:
    """An engine that has the image."""
    require_private_engine()
    engine = PrivateEngine()
    try:
        engine.start()
        engine.load()
        yield engine
    finally:
        engine.close()


@pytest.fixture
def engine(loaded: PrivateEngine) -> PrivateEngine:
    """An engine that runs when a test begins."""
    if not loaded.runs:
        loaded.start()
    return loaded


@pytest.fixture
def launch(engine: PrivateEngine, tmp_path: Path) -> Iterator[Launch]:
    """Start a proxy before that engine."""
    with ExitStack() as stack:

        def one(backends: dict[str, Demo], *, start: bool = True, **top: Any) -> Proxy:
            world = DockerWorld(tmp_path, host=engine.host, bridge=False)
            proxy = Proxy(tmp_path, world)

            def close() -> None:
                if not engine.runs:
                    engine.start()
                proxy.close()

            stack.callback(close)
            proxy.configure(backends, **top)
            if start:
                proxy.start()
            return proxy

        yield one


def assert_away(answer: Answer) -> None:
    """It says that the engine does not answer."""
    assert (answer.status, answer.error["code"]) == (503, "runtime_unavailable")
    assert int(answer.header("Retry-After") or 0) >= 1


def assert_well(proxy: Proxy, route: str) -> None:
    """It is answered within some seconds, and until then nobody is told worse than to try again."""
    deadline = time.monotonic() + 8
    while (answer := proxy.chat(route)).status != 200:
        assert_away(answer)
        assert time.monotonic() < deadline
        time.sleep(0.2)


def look(proxy: Proxy, route: str, what: str) -> str:
    """A part of ``docker inspect``."""
    assert isinstance(proxy.world, DockerWorld)
    return proxy.world.look(route, what)


def test_restarted(engine: PrivateEngine, launch: Launch) -> None:
    """An engine that is restarted takes its containers with it; meanwhile 503, and all is well after."""
    proxy = launch(
        {
            "a": demo("--term-in-flight", "hang", options=("--stop-timeout", "1")),
            "b": demo("--start-delay", "60"),
        }
    )
    assert proxy.chat("a").status == 200
    with proxy.streaming("a") as wire, proxy.wire() as waiter:
        waiter.post("/b/v1/chat/completions", b"{}")
        until(lambda: proxy.world.starts("b"))
        engine.send(signal.SIGTERM)
        assert waiter.answer().status == 503
        engine.end(signal.SIGKILL)  # it waits for a container that ignores TERM
        proxy.until_state("b", "absent", "failed")
        assert proxy.ask("GET", "/healthz").status == 200
        until(lambda: proxy.ask("GET", "/readyz").status == 503, 3)
        assert proxy.ask("GET", "/v1/models").status == 200
        engine.start()
        rest = wire.rest()
    assert b"backend_died" in rest
    assert not rest.endswith(b"0\r\n\r\n")
    assert_well(proxy, "a")
    assert proxy.world.starts("a") == 2
    assert proxy.ask("GET", "/readyz").status == 200


def test_away(engine: PrivateEngine, launch: Launch) -> None:
    """What is ready or starts while the engine is away goes on; what is absent is refused, and not held
    against it afterwards."""
    proxy = launch({"a": demo(), "b": demo(), "c": demo("--start-delay", "1.5")})
    engine.end()
    engine.start("--live-restore")
    assert_well(proxy, "a")
    began = look(proxy, "a", ".State.StartedAt")
    with proxy.streaming("a", tokens=100, delay=0.03) as stream, proxy.wire() as waiter:
        waiter.post("/c/v1/chat/completions", json.dumps(chat("c-model")).encode())
        until(lambda: proxy.world.starts("c"))
        engine.end(signal.SIGKILL)
        assert_away(proxy.chat("b"))
        assert_away(proxy.chat("b"))
        assert proxy.chat("a").status == 200
        assert waiter.answer().status == 200
        assert proxy.state("c") == "ready"
        assert b"error" not in stream.through(b"data: [DONE]\n\n")
    engine.start("--live-restore")
    assert_well(proxy, "b")
    assert proxy.state("a") == proxy.state("c") == "ready"
    assert proxy.chat("a").status == 200
    assert look(proxy, "a", ".State.StartedAt") == began
    assert [proxy.world.starts(route) for route in "abc"] == [1, 1, 1]


def test_backend_that_dies_while_away(engine: PrivateEngine, launch: Launch) -> None:
    """A backend that dies while the engine is away is noticed by its broken answers, and started again when
    the engine is back."""
    engine.end()
    engine.start("--live-restore")
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    pid = int(look(proxy, "a", ".State.Pid"))
    with proxy.streaming("a") as wire:
        engine.end(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        assert b"backend_died" in wire.rest()
    proxy.until_state("a", "absent")
    assert_away(proxy.chat("a"))
    engine.start("--live-restore")
    assert_well(proxy, "a")
    assert proxy.world.starts("a") == 2


def test_idle_while_away(engine: PrivateEngine, launch: Launch) -> None:
    """A backend that cannot be stopped for want of the engine is stopped when it is back."""
    engine.end()
    engine.start("--live-restore")
    proxy = launch({"a": demo(idle="1s")})
    assert proxy.chat("a").status == 200
    engine.end(signal.SIGKILL)
    proxy.until_state("a", "absent")
    engine.start("--live-restore")
    until(lambda: not proxy.world.is_running("a"), 10)
    assert proxy.world.starts("a") == 1


def test_away_at_the_start(engine: PrivateEngine, launch: Launch) -> None:
    """A proxy that is started while the engine is away waits for it; labels are read when it is there."""
    proxy = launch({"a": demo()}, start=False)
    world = proxy.world
    assert isinstance(world, DockerWorld)
    command = [
        "python3",
        "-m",
        "llmproxy.demo",
        "--host",
        "127.0.0.1",
        "--port",
        str(world.free_port("extra")),
    ]
    labels = ("--label", "llmproxy.route=extra")
    world.make(f"{world.prefix}-extra", [*command, "--model", "extra-model"], *labels)
    engine.end()
    proxy.start()
    assert_away(proxy.chat("a"))
    assert proxy.ask("GET", "/extra/v1/models").status == 404
    engine.start()
    assert_well(proxy, "a")
    until(lambda: proxy.chat("extra").status == 200)


def test_stop_backends_on_exit(launch: Launch) -> None:
    """With stop_backends_on_exit no container runs when the proxy has ended.  Over this engine, as the other
    one may have containers that are none of ours and whose labels make them routes."""
    proxy = launch({"a": demo(), "b": demo("--start-delay", "60", prewarm=True)}, stop_backends_on_exit=True)
    assert proxy.chat("a").status == 200
    until(lambda: proxy.world.starts("b") == 1)
    assert proxy.stop() == -signal.SIGTERM
    assert not proxy.world.is_running("a")
    assert not proxy.world.is_running("b")
