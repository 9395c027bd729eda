"""What only Docker has of the contract's sections 3 and 5: containers that others stop, remove and start, a
proxy that is killed while they are in each of their states, and the ways in which they fail."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.integration.conftest import Launch
from tests.integration.docker_world import DockerWorld
from tests.integration.engine import BASE_IMAGE, TEST_LABEL, require_docker, unique
from tests.integration.proxy import Demo, Proxy, Wire, at_once, chat, demo
from tests.integration.test_cold_start import SERVER
from tests.integration.world import until

pytestmark = pytest.mark.docker

ABSENT_IMAGE = "127.0.0.1:1/llmproxy-test-nobody:1"
"""An image that no engine has, in a registry that refuses connections at once."""


@pytest.fixture(scope="module")
def kind() -> str:
    """Where the backends live."""
    require_docker("demo")
    return "docker"


def world(proxy: Proxy) -> DockerWorld:
    """The containers behind it."""
    assert isinstance(proxy.world, DockerWorld)
    return proxy.world


def body(**more: Any) -> bytes:
    """A chat completion."""
    return json.dumps(chat("a-model", **more)).encode()


def started_at(proxy: Proxy) -> str:
    """When the present run of ``a`` began, by the engine's own account."""
    found = world(proxy).look("a", ".State.StartedAt")
    assert found
    return found


STATES = ("absent", "starting", "ready", "streaming", "draining", "stopping", "failed")


def backend_for(state: str, **settings: Any) -> Demo:
    """A demo server that can be brought into that state and is quick in all others."""
    if state == "starting":
        return demo("--start-delay", "1.5", **settings)
    if state == "stopping":
        return demo("--ignore-term", "-1", stop_grace="30s", **settings)
    # A TERM during an answer leaves it silent until KILL comes, as vLLM does half of the time.
    return demo("--term-in-flight", "hang", **settings)


@contextmanager
def brought_to(state: str, proxy: Proxy) -> Iterator[Wire | None]:
    """Backend ``a`` in that state, and the client that is being served in it, if there is one."""
    with ExitStack() as stack:
        client: Wire | None = None
        if state == "starting":
            client = stack.enter_context(proxy.wire())
            client.post("/a/v1/chat/completions", body())
            until(lambda: proxy.world.starts("a"))
            assert proxy.state("a") == "starting"
        elif state == "failed":
            world(proxy).breaks("a", True)
            assert proxy.chat("a").error["code"] == "backend_start_failed"
            world(proxy).breaks("a", False)
        elif state != "absent":
            assert proxy.chat("a").status == 200
        if state in ("streaming", "draining"):
            client = stack.enter_context(proxy.streaming("a"))
        if state in ("draining", "stopping"):
            assert proxy.act("a", "stop", "").json["state"] == state
        yield client


# -- somebody else stops it and removes it --------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", ["stop", "rm"])
def test_interference(launch: Launch, verb: str, state: str) -> None:
    """docker stop and docker rm -f are noticed at once in every state; the next request starts it again, and
    creates it where it has to."""
    proxy = launch({"a": backend_for(state, created=verb == "rm")})
    if state == "absent" and verb == "rm":
        assert proxy.chat("a").status == 200
        proxy.act("a", "stop")
    with brought_to(state, proxy) as client:
        starts = proxy.world.starts("a")
        if verb == "stop":
            world(proxy).act("stop", "a", "--time", "1" if client is not None else "0")
        else:
            world(proxy).act("rm", "a", "-f")
        began = time.monotonic()
        if state == "starting":
            assert client is not None
            answer = client.answer()
            assert (answer.status, answer.error["code"]) == (503, "backend_start_failed")
        elif client is not None:
            rest = client.rest()
            assert b"backend_died" in rest
            assert not rest.endswith(b"0\r\n\r\n")
        fails = verb == "stop" and state in ("starting", "failed")
        proxy.until_state("a", "failed" if fails else "absent", seconds=1)
        assert time.monotonic() - began < 1.5
    if fails:  # a start that fails cools down, however it came to fail
        assert proxy.chat("a").error["code"] == "backend_start_failed"
        proxy.act("a", "reset")
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == starts + 1


def test_stopped_in_mid_stream_by_the_engine_itself(launch: Launch) -> None:
    """An engine that ends its streams in order when it is stopped has the last word; they count as broken."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    more = {"stream": True, "ignore_eos": True, "max_tokens": 10_000, "demo_token_delay": 0.02}
    with proxy.wire() as wire:
        wire.post("/a/v1/chat/completions", body(**more), "X-Request-ID: stopped")
        wire.through(b'"content":"You"')
        world(proxy).act("stop", "a")
        assert b'"error"' in wire.through(b"data: [DONE]\n\n")
    assert proxy.access("stopped")["outcome"] == "backend_died"
    proxy.until_state("a", "absent", seconds=1)
    assert proxy.chat("a").status == 200


# -- somebody else starts it ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["absent", "failed"])
def test_started_by_someone_else(launch: Launch, state: str) -> None:
    """A container that somebody starts is adopted, also when its last start failed."""
    proxy = launch({"a": demo("--start-delay", "0.5")})
    with brought_to(state, proxy):
        pass
    world(proxy).act("start", "a")
    proxy.until_state("a", "starting", "ready", seconds=1)
    proxy.until_state("a", "ready")
    began = started_at(proxy)
    assert float(proxy.chat("a").header("X-LLMProxy-Cold-Start") or -1) == 0
    assert started_at(proxy) == began
    assert proxy.world.starts("a") == 1


def test_started_while_the_proxy_was_down(launch: Launch) -> None:
    """A container that was started while no proxy ran is adopted when one is started."""
    proxy = launch({"a": demo()}, start=False)
    world(proxy).act("start", "a")
    began = started_at(proxy)
    proxy.start()
    proxy.until_state("a", "ready")
    assert proxy.chat("a").status == 200
    assert (proxy.world.starts("a"), started_at(proxy)) == (1, began)


def test_restarted_by_someone_else(launch: Launch) -> None:
    """docker restart ends what is in flight and leaves a backend that is adopted; so does a new container."""
    proxy = launch({"a": demo("--term-in-flight", "hang")})
    assert proxy.chat("a").status == 200
    with proxy.streaming("a") as wire:
        world(proxy).act("restart", "a", "--time", "0")
        assert b"backend_died" in wire.rest()
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 2
    name = world(proxy).name("a")
    world(proxy).act("rm", "a", "-f")
    command = ["python3", "-m", "llmproxy.demo", "--port", "8000", "--model", "a-model"]
    world(proxy).make(name, command)
    world(proxy).act("start", "a")
    proxy.until_state("a", "ready", seconds=5)
    began = started_at(proxy)
    assert proxy.chat("a").status == 200
    assert started_at(proxy) == began


# -- the proxy killed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_proxy_killed(launch: Launch, state: str) -> None:
    """A proxy that is killed and started again adopts what runs: one start, and the very same run."""
    proxy = launch({"a": backend_for(state)})
    with brought_to(state, proxy):
        running = state not in ("absent", "failed")
        began = started_at(proxy) if running else None
        starts = proxy.world.starts("a")
        proxy.kill()
    proxy.start()
    assert proxy.state("a") in (("starting", "ready") if running else ("absent",))
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == (starts if running else starts + 1)
    assert not running or started_at(proxy) == began


@pytest.mark.parametrize("created", [False, True])
def test_proxy_killed_at_the_launch(launch: Launch, created: bool) -> None:
    """At the very moment of a start there is one container and one run of it afterwards."""
    proxy = launch({"a": demo("--start-delay", "0.3", created=created)})
    for number, pause in enumerate((0.0, 0.1), 1):
        with proxy.wire() as wire:
            wire.post("/a/v1/chat/completions", body())
            time.sleep(pause)
            proxy.kill()
        proxy.start()
        assert proxy.chat("a").status == 200
        assert proxy.world.starts("a") == number
        assert proxy.act("a", "stop").json["state"] == "absent"


# -- starts ----------------------------------------------------------------------------------------------


def test_many_create_one(launch: Launch) -> None:
    """200 requests at once for a container that does not exist create one and start it once."""
    proxy = launch({"a": demo("--start-delay", "0.3", created=True)})
    assert {answer.status for answer in at_once(200, lambda _: proxy.chat("a"))} == {200}
    assert proxy.world.starts("a") == 1
    assert world(proxy).look("a", ".RestartCount") == "0"


def test_hand_over(launch: Launch) -> None:
    """A request reaches a container within 25 ms (median) of its first healthy answer."""
    proxy = launch({}, start=False)
    folder, name = world(proxy).folder, world(proxy).prefix + "-timed"
    (folder / "server.py").write_text(SERVER.replace("127.0.0.1", "0.0.0.0"))
    world(proxy).make(name, ["python3", "-S", "/starts/server.py", "8000", "/starts/notes"])
    proxy.configure({"a": {"container": name, "engine": "generic", "stop_grace": "0s"}})
    proxy.start()
    took = []
    for _ in range(5):
        (folder / "notes").unlink(missing_ok=True)
        assert proxy.ask("POST", "/a/x", b"{}").status == 200
        seen = [line.split() for line in (folder / "notes").read_text().splitlines()]
        healthy = next(float(at) for at, path in seen if path == "/health")
        took.append(next(float(at) for at, path in seen if path == "/x") - healthy)
        assert proxy.act("a", "stop").status == 200
    assert statistics.median(took) < 0.025, took


def test_killed_for_lack_of_memory_while_starting(launch: Launch) -> None:
    """A container that runs out of memory while it starts is a failed start that says so."""
    limits = ("--memory", "160m", "--memory-swap", "160m")
    proxy = launch({"a": demo("--start-delay", "60", "--oom-after", "0.3", options=limits)})
    answer = proxy.chat("a")
    assert (answer.status, answer.error["code"]) == (503, "backend_start_failed")
    assert "killed for lack of memory" in answer.error["message"]
    failure = proxy.backend("a")["last_failure"]
    assert (failure["oom"], failure["exit_code"]) == (True, 137)


def test_killed_for_lack_of_memory_while_ready(launch: Launch) -> None:
    """A container that runs out of memory while it answers is told to its clients and started again."""
    limits = ("--memory", "160m", "--memory-swap", "160m")
    proxy = launch({"a": demo(options=limits)})
    assert proxy.chat("a").status == 200
    with proxy.streaming("a") as wire:
        answer = proxy.ask("POST", "/a/v1/chat/completions", chat("a-model"), {"X-Demo-Fault": "oom"})
        rest = wire.rest()
    assert (answer.status, answer.error["code"]) == (502, "backend_unavailable")
    assert b"backend_died" in rest
    assert not rest.endswith(b"0\r\n\r\n")
    proxy.until_state("a", "absent", seconds=1)
    until(lambda: "a ended with exit status 137, killed for lack of memory" in proxy.log(), 2)
    assert proxy.chat("a").status == 200


def test_image_that_does_not_exist(launch: Launch) -> None:
    """An image that is nowhere, and a container that nobody has created, are failed starts, told at once."""
    backends = {
        "a": {"image": ABSENT_IMAGE, "container": unique("nobody"), "models": ["a-model"]},
        "b": {"container": unique("nobody"), "models": ["b-model"]},
    }
    proxy = launch(backends)
    for answer, words in ((proxy.chat("a"), ABSENT_IMAGE), (proxy.chat("b"), "does not exist")):
        assert (answer.status, answer.error["code"]) == (503, "backend_start_failed")
        assert words in answer.error["message"]
        assert answer.error["hint"]
        assert answer.header("Retry-After") in ("4", "5")


def test_failed_container_is_replaced(launch: Launch) -> None:
    """Creating a container that was missing ends the cool-down: the next request starts it."""
    name = unique("late")
    proxy = launch({"a": {"container": name, "port": 8000, "models": ["a-model"]}})
    assert proxy.chat("a").status == 503
    world(proxy).prefix = name
    world(proxy).make(name, ["python3", "-m", "llmproxy.demo", "--port", "8000", "--model", "a-model"])
    proxy.until_state("a", "absent", seconds=1)
    assert proxy.chat("a").status == 200


def test_stubborn_container(launch: Launch) -> None:
    """An idle container that ignores TERM gets a second one, then KILL; its restart policy is not asked."""
    stubborn = demo("--ignore-term", "-1", idle="0.3s", stop_grace="1s", options=("--restart", "always"))
    proxy = launch({"a": stubborn})
    assert proxy.chat("a").status == 200
    proxy.until_state("a", "stopping")
    began = time.monotonic()
    proxy.until_state("a", "absent")
    assert 0.7 < time.monotonic() - began < 2.5
    assert world(proxy).look("a", ".State.ExitCode") == "137"
    log = world(proxy).docker("logs", world(proxy).name("a"))
    assert "TERM number 2 is ignored" in log
    assert "TERM number 3" not in log
    time.sleep(0.5)
    assert not proxy.world.is_running("a")
    assert proxy.world.starts("a") == 1


# -- labels ----------------------------------------------------------------------------------------------


def test_label_makes_a_route(launch: Launch) -> None:
    """A container whose label makes it a route becomes one without a restart, and ceases to be one."""
    proxy = launch({})
    name = world(proxy).prefix + "-labelled"
    route = name.rpartition("test-")[2]
    labels = ("--label", f"llmproxy.route={route}", "--label", "llmproxy.port=8000")
    assert proxy.ask("GET", f"/{route}/v1/models").error["code"] == "route_not_found"
    command = ["python3", "-m", "llmproxy.demo", "--port", "8000", "--model", "labelled-model"]
    world(proxy).make(name, command, *labels)
    until(lambda: proxy.chat("labelled").status == 200, 3)
    world(proxy).docker("rm", "-f", name)
    until(lambda: proxy.ask("GET", f"/{route}/v1/models").status == 404, 2)


def test_bad_label(launch: Launch) -> None:
    """A container whose labels are wrong is told in the log and changes nothing."""
    proxy = launch({"a": demo()})
    name = world(proxy).prefix + "-bad"
    label = f"llmproxy.route={name}"
    world(proxy).docker(
        "create",
        "--name",
        name,
        "--label",
        TEST_LABEL,
        "--label",
        label,
        "--label",
        "llmproxy.idle=soon",
        BASE_IMAGE,
        "true",
    )
    until(lambda: "not reloaded" in proxy.log(), 2)
    world(proxy).docker("rm", "-f", name)
    assert proxy.chat("a").status == 200
