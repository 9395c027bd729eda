"""The Docker runtime against a real engine."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from pytest_twisted import blockon
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.docker import DockerRuntime
from llmproxy.runtimes.docker_catalogue import read_labelled_containers
from llmproxy.runtimes.docker_client import find_container, make_client
from llmproxy.runtimes.interface import Exit, IRuntime, RuntimeUnavailable, StartRefused
from tests.contract_runtimes import Reactor, Rig, RuntimeContract, eventually, gone, on_reactor, pause, runs
from tests.fakes import RecordingWatcher
from tests.integration.engine import (
    BASE_IMAGE,
    DEMO_IMAGE,
    TEST_LABEL,
    docker,
    remove_containers,
    require_docker,
    unique,
)

REACTOR: Reactor = global_reactor
pytestmark = pytest.mark.docker

# As process 1 a shell gets TERM only if it asks for it; `wait` returns at once when a signal comes.
WELL_BEHAVED = "trap 'exit 143' TERM; echo hello; while :; do sleep 60 & wait $!; done"
STUBBORN = "trap '' TERM; echo hello; while :; do sleep 60; done"


def test_one_connection_for_all_calls() -> None:
    """A client keeps one connection, whatever it asks for; the SDK would keep one for each URL."""
    require_docker()

    def sockets() -> int:
        found = 0
        for each in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the folder itself, which is closed by now
                found += os.readlink(f"/proc/self/fd/{each}").startswith("socket:")
        return found

    before = sockets()
    client = make_client(DockerSettings())
    for number in range(8):
        assert find_container(client, unique(str(number))) is None
    assert sockets() <= before + 1
    client.close()
    assert sockets() == before


@define
class DockerRig:
    """A runtime, and containers whose names begin with ``prefix``."""

    reactor: Reactor
    prefix: str = field(factory=lambda: unique("rt"))
    can_stop: bool = True
    runtime: DockerRuntime = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.runtime = self.make_runtime()
        self.runtime.start()

    def make_runtime(self) -> DockerRuntime:
        return DockerRuntime(self.reactor, DockerSettings(), backend_key="k")

    def create(self, route: str, script: str, *options: str) -> BackendSpec:
        name = f"{self.prefix}-{route}"
        docker("create", "--name", name, "--label", TEST_LABEL, *options, BASE_IMAGE, "sh", "-c", script)
        return BackendSpec(route, container=name, port=8000)

    def spec(self, route: str) -> BackendSpec:
        if route == "never":
            return BackendSpec(route, container=f"{self.prefix}-never")
        return self.create(route, WELL_BEHAVED)

    def stubborn(self, route: str) -> BackendSpec:
        return self.create(route, STUBBORN, "--init")

    def brief(self, route: str) -> BackendSpec:
        return self.create(route, "exit 3")

    def broken(self, route: str) -> BackendSpec:
        return BackendSpec(route, container=f"{self.prefix}-missing")

    def image_spec(self, route: str, script: str = WELL_BEHAVED) -> BackendSpec:
        return BackendSpec(
            route,
            container=f"{self.prefix}-{route}",
            image=BASE_IMAGE,
            args=("sh", "-c", script),
            environment={"COLOUR": "red"},
            port=8000,
        )

    async def kill(self, spec: BackendSpec) -> None:
        docker("kill", str(spec.container))

    async def close(self) -> None:
        await self.runtime.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A runtime for one test; its containers are removed afterwards."""
    require_docker()
    made = DockerRig(REACTOR)
    try:
        yield made
    finally:
        blockon(Deferred.fromCoroutine(made.close()))
        remove_containers(made.prefix)


class TestDockerRuntime(RuntimeContract):
    """The contract."""


@on_reactor
async def test_events_of_others(rig: DockerRig) -> None:
    """Starting, stopping, creating, renaming and removing by somebody else are noticed."""
    watcher = RecordingWatcher()
    spec = BackendSpec("a", container=f"{rig.prefix}-a")
    await rig.runtime.watch(spec, watcher)
    await pause(rig.reactor, 0.3)
    rig.create("a", WELL_BEHAVED)
    await eventually(rig.reactor, lambda: "changed" in watcher.kinds())
    docker("start", str(spec.container))
    await eventually(rig.reactor, lambda: runs(watcher))
    docker("stop", "-t", "5", str(spec.container))
    await eventually(rig.reactor, lambda: runs(watcher)[0] in dict(gone(watcher)))
    assert dict(gone(watcher))[runs(watcher)[0]] == Exit(143)
    before = watcher.kinds().count("changed")
    docker("rename", str(spec.container), f"{spec.container}-old")
    await eventually(rig.reactor, lambda: watcher.kinds().count("changed") == before + 1)
    docker("rename", f"{spec.container}-old", str(spec.container))
    await eventually(rig.reactor, lambda: watcher.kinds().count("changed") == before + 2)
    docker("rm", "-f", str(spec.container))
    await eventually(rig.reactor, lambda: watcher.kinds().count("changed") == before + 3)
    assert watcher.kinds().count("running") == 1


@on_reactor
async def test_removed_while_running(rig: DockerRig) -> None:
    """A container that is removed by force while it runs is gone."""
    watcher, spec = RecordingWatcher(), rig.spec("a")
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    docker("rm", "-f", str(spec.container))
    await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
    with pytest.raises(StartRefused, match="does not exist"):
        await rig.runtime.ensure_started(spec)


@on_reactor
async def test_restart_by_others(rig: DockerRig) -> None:
    """A restart by somebody else is the end of one run and another one."""
    watcher, spec = RecordingWatcher(), rig.spec("a")
    await rig.runtime.watch(spec, watcher)
    first = await rig.runtime.ensure_started(spec)
    docker("restart", "-t", "2", str(spec.container))
    await eventually(rig.reactor, lambda: len(runs(watcher)) >= 1 and runs(watcher)[-1] != first.run)
    assert [run for run, _ in gone(watcher)] == [None, first.run]


@on_reactor
async def test_pause(rig: DockerRig) -> None:
    """A paused container is gone, a start makes it go on as another run, and it can be stopped."""
    watcher, spec = RecordingWatcher(), rig.spec("a")
    await rig.runtime.watch(spec, watcher)
    first = await rig.runtime.ensure_started(spec)
    docker("pause", str(spec.container))
    await eventually(rig.reactor, lambda: first.run in dict(gone(watcher)))
    second = await rig.runtime.ensure_started(spec)
    assert second.run != first.run
    docker("pause", str(spec.container))
    await eventually(rig.reactor, lambda: second.run in dict(gone(watcher)))
    await rig.runtime.stop(spec, 10)
    assert docker("inspect", "-f", "{{.State.Status}}", str(spec.container)) == "exited"


@on_reactor
@pytest.mark.parametrize("script", [WELL_BEHAVED, STUBBORN])
async def test_restart_policy(rig: DockerRig, script: str) -> None:
    """A container that Docker would restart stays stopped when it is stopped here."""
    spec = rig.create("a", script, "--init", "--restart", "always")
    await rig.runtime.ensure_started(spec)
    await rig.runtime.stop(spec, 0.6)
    await pause(rig.reactor, 1.0)
    assert docker("inspect", "-f", "{{.State.Status}}", str(spec.container)) == "exited"


@on_reactor
async def test_waiting_for_restart(rig: DockerRig) -> None:
    """A container that waits for its restart policy is not running; it can be started and stopped."""
    spec = rig.create("a", "sleep 0.4; exit 3", "--restart", "always")
    watcher = RecordingWatcher()
    await rig.runtime.watch(spec, watcher)
    docker("start", str(spec.container))
    await eventually(rig.reactor, lambda: len(gone(watcher)) >= 3)
    assert all(exit == Exit(3) for run, exit in gone(watcher) if run is not None)
    await pause(rig.reactor, 1.0)
    await rig.runtime.stop(spec, 5)
    await pause(rig.reactor, 0.5)
    assert docker("inspect", "-f", "{{.State.Status}}", str(spec.container)) == "exited"


@on_reactor
async def test_out_of_memory(rig: DockerRig) -> None:
    """A container that the kernel kills for memory says so."""
    script = "import time; time.sleep(0.5); x = bytearray(200 * 2**20); time.sleep(60)"
    name = f"{rig.prefix}-a"
    options = ["--label", TEST_LABEL, "--memory", "24m", "--memory-swap", "24m"]
    docker("create", "--name", name, *options, BASE_IMAGE, "python3", "-c", script)
    spec, watcher = BackendSpec("a", container=name), RecordingWatcher()
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
    assert dict(gone(watcher))[instance.run] == Exit(137, oom=True)


@on_reactor
async def test_created_from_image(rig: DockerRig) -> None:
    """A missing container with an image is created, and created anew when its settings change."""
    watcher, spec = RecordingWatcher(), rig.image_spec("a", "python3 -m http.server 8000")
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    assert {address.via for address in instance.addresses} == {"published", "bridge"}
    assert instance.addresses[0].host == "127.0.0.1"
    info = json.loads(docker("inspect", str(spec.container)))[0]
    assert info["HostConfig"]["PortBindings"]["8000/tcp"][0]["HostIp"] == "127.0.0.1"
    assert info["HostConfig"]["Init"] is True
    assert info["HostConfig"]["IpcMode"] == "host"
    assert info["Config"]["Labels"]["llmproxy.managed.route"] == "a"
    assert "VLLM_API_KEY=k" in info["Config"]["Env"]
    await answers(rig, instance.addresses[0].port)
    await rig.runtime.stop(spec, 0)
    same = await rig.runtime.ensure_started(spec)
    assert same.run.partition(":")[0] == info["Id"]
    await rig.runtime.stop(spec, 0)
    changed = await rig.runtime.ensure_started(evolve(spec, environment={"COLOUR": "blue"}))
    assert changed.run.partition(":")[0] != info["Id"]
    facts = await rig.runtime.facts(spec)
    assert facts.args == ("sh", "-c", "python3 -m http.server 8000")
    assert facts.environment["COLOUR"] == "blue"
    await rig.runtime.stop(spec, 0)
    await pause(rig.reactor, 0.3)
    assert "changed" not in watcher.kinds()


async def answers(rig: DockerRig, port: int) -> None:
    """Wait until something listens there."""
    for _ in range(100):
        try:
            protocol = await connectProtocol(HostnameEndpoint(rig.reactor, "127.0.0.1", port), Protocol())
        except ConnectError:
            await pause(rig.reactor, 0.1)
        else:
            assert protocol.transport is not None
            protocol.transport.loseConnection()
            return
    raise AssertionError("nothing listens")


@on_reactor
async def test_missing_image(rig: DockerRig) -> None:
    """An image that is neither here nor in a registry is told with its name."""
    spec = BackendSpec("a", container=f"{rig.prefix}-a", image="localhost:1/llmproxy-test/none:1")
    with pytest.raises(StartRefused, match="localhost:1/llmproxy-test/none"):
        await rig.runtime.ensure_started(spec)


@on_reactor
async def test_bad_command(rig: DockerRig) -> None:
    """A command that is not in the image is refused with a hint."""
    name = f"{rig.prefix}-a"
    docker("create", "--name", name, "--label", TEST_LABEL, BASE_IMAGE, "/no/such/command")
    with pytest.raises(StartRefused, match="no/such/command") as caught:
        await rig.runtime.ensure_started(BackendSpec("a", container=name))
    assert caught.value.hint


@on_reactor
async def test_facts_of_a_missing_one(rig: DockerRig) -> None:
    """What a container would have is read from its spec and image before it exists."""
    facts = await rig.runtime.facts(rig.image_spec("never"))
    assert facts.args == ("sh", "-c", WELL_BEHAVED)
    assert facts.environment["COLOUR"] == "red"
    assert "PATH" in facts.environment


@on_reactor
async def test_compose(rig: DockerRig, tmp_path: Path) -> None:
    """A missing container whose service stands in the compose file is created by Compose, profiles or not."""
    name = f"{rig.prefix}-a"
    file = tmp_path / "docker-compose.yml"
    command = json.dumps(["sh", "-c", WELL_BEHAVED.replace("$", "$$")])
    file.write_text(
        f"version: '3.9'\nservices:\n  model:\n    image: {BASE_IMAGE}\n    container_name: {name}\n"
        f"    profiles: [models]\n    network_mode: bridge\n    command: {command}\n"
        "    labels: {llmproxy.test: '1'}\n"
    )
    runtime = DockerRuntime(
        rig.reactor, DockerSettings(compose_file=str(file)), compose=lambda: [ComposeService("model", name)]
    )
    runtime.start()
    try:
        spec = BackendSpec("a", container=name, port=8000)
        instance = await runtime.ensure_started(spec)
        assert instance.addresses
        await runtime.stop(spec, 10)
    finally:
        await runtime.close()


@on_reactor
async def test_compose_refuses(rig: DockerRig, tmp_path: Path) -> None:
    """What Compose complains of is in the refusal."""
    name = f"{rig.prefix}-a"
    file = tmp_path / "docker-compose.yml"
    file.write_text("services:\n  model: {image: 17, nonsense: 3}\n")
    runtime = DockerRuntime(
        rig.reactor, DockerSettings(compose_file=str(file)), compose=lambda: [ComposeService("model", name)]
    )
    runtime.start()
    try:
        with pytest.raises(StartRefused, match="model") as caught:
            await runtime.ensure_started(BackendSpec("a", container=name))
        assert caught.value.hint
    finally:
        await runtime.close()


@on_reactor
async def test_catalogue(rig: DockerRig) -> None:
    """Containers with a route label are listed, running or not, and their coming and going is told."""
    told: list[None] = []
    rig.runtime.on_catalogue_change(lambda: told.append(None))
    await eventually(rig.reactor, lambda: told)
    del told[:]
    rig.create("x", "true", "--label", "llmproxy.route=x", "--label", "llmproxy.port=8001")
    await eventually(rig.reactor, lambda: told)
    mine = [each for each in await rig.runtime.catalogue() if each.name == f"{rig.prefix}-x"]
    assert mine[0].labels["llmproxy.port"] == "8001"
    assert mine[0] in read_labelled_containers(DockerSettings(), 5)
    del told[:]
    docker("rm", f"{rig.prefix}-x")
    await eventually(rig.reactor, lambda: told)


@on_reactor
async def test_terminal_logs(rig: DockerRig) -> None:
    """The output of a container with a terminal is read as lines, too."""
    spec = rig.create("a", WELL_BEHAVED, "--tty")
    await rig.runtime.ensure_started(spec)
    lines: list[str] = []
    following = rig.runtime.follow_logs(spec, 5, lines.append)
    await eventually(rig.reactor, lambda: "hello" in lines)
    assert await rig.runtime.logs(spec, 5) == "hello"
    await rig.runtime.stop(spec, 5)
    await following


@on_reactor
async def test_no_engine(tmp_path: Path) -> None:
    """Without an engine everything says so, and a watch waits for its return."""
    settings = DockerSettings(host=f"unix://{tmp_path}/none.sock")
    runtime: IRuntime = DockerRuntime(REACTOR, settings)
    runtime.start()
    try:
        with pytest.raises(RuntimeUnavailable, match=r"none\.sock"):
            await runtime.ping()
        watcher = RecordingWatcher()
        await runtime.watch(BackendSpec("a"), watcher)
        assert watcher.events == []
        with pytest.raises(RuntimeUnavailable):
            await runtime.ensure_started(BackendSpec("a"))
        with pytest.raises(RuntimeUnavailable):
            await runtime.stop(BackendSpec("a"), 1)
        with pytest.raises(RuntimeUnavailable):
            await runtime.logs(BackendSpec("a"), 1)
        with pytest.raises(RuntimeUnavailable):
            await runtime.follow_logs(BackendSpec("a"), 1, lambda _: None)
    finally:
        await runtime.close()
    with pytest.raises(RuntimeUnavailable):
        read_labelled_containers(settings, 1)


@define(eq=False)
class _Through(Protocol):
    """One side of a connection that is passed on to the engine."""

    other: _Through | None = None
    waiting: list[bytes] = field(factory=list)

    def dataReceived(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self.waiting.append(data)

    def connectionLost(self, reason: object = None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.loseConnection()


@define(eq=False)
class _Cable(Factory):
    """A socket in front of the engine's, that can be pulled out."""

    reactor: Reactor
    path: str
    sides: list[_Through] = field(factory=list)
    port: Any = None

    def plug(self) -> None:
        self.port = self.reactor.listenUNIX(self.path, self)

    def buildProtocol(self, addr: object) -> _Through:
        near = _Through()
        self.sides.append(near)
        engine = UNIXClientEndpoint(self.reactor, "/var/run/docker.sock")

        def joined(far: _Through) -> None:
            near.other, far.other = far, near
            self.sides.append(far)
            for data in near.waiting:
                near.dataReceived(data)

        connectProtocol(engine, _Through()).addCallback(joined)
        return near

    async def pull(self) -> None:
        await self.port.stopListening()
        for side in self.sides:
            if side.transport is not None:
                side.transport.loseConnection()
        self.sides.clear()


# The SDK drops a socket that it cannot connect, and leaves it to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@on_reactor
async def test_engine_goes_and_comes_back(rig: DockerRig, tmp_path: Path) -> None:
    """What happened while the engine could not be reached is told when it can be again."""
    cable = _Cable(rig.reactor, str(tmp_path / "docker.sock"))
    cable.plug()
    runtime = DockerRuntime(rig.reactor, DockerSettings(host=f"unix://{cable.path}"))
    runtime.start()
    told: list[None] = []
    runtime.on_catalogue_change(lambda: told.append(None))
    try:
        spec, watcher = rig.spec("a"), RecordingWatcher()
        await runtime.watch(spec, watcher)
        first = await runtime.ensure_started(spec)
        await eventually(rig.reactor, lambda: told)
        await cable.pull()
        with pytest.raises(RuntimeUnavailable):
            await runtime.ping()
        with pytest.raises(RuntimeUnavailable):
            await runtime.ensure_started(spec)
        assert first.run not in dict(gone(watcher))
        docker("stop", "-t", "5", str(spec.container))
        del told[:]
        cable.plug()
        await eventually(rig.reactor, lambda: first.run in dict(gone(watcher)))
        assert dict(gone(watcher))[first.run] == Exit(143)
        await eventually(rig.reactor, lambda: told)
        second = await runtime.ensure_started(spec)
        await eventually(rig.reactor, lambda: runs(watcher)[-1:] == [second.run])
    finally:
        await runtime.close()
        await cable.pull()
        # Here, and not in whichever test comes later.
        gc.collect()


IN_A_CONTAINER = """
import sys
from twisted.internet import reactor
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.docker import DockerRuntime
runtime = DockerRuntime(reactor, DockerSettings(), backend_key="k")
runtime.start()
image = sys.argv[2] if len(sys.argv) > 2 else None
spec = BackendSpec("a", container=sys.argv[1], image=image, args=("sleep", "600") if image else (), port=8000)
started = runtime.ensure_started(spec)
started.addCallback(lambda found: print([(each.via, each.host) for each in found.addresses], flush=True))
started.addErrback(lambda reason: print(reason, flush=True)).addBoth(lambda _: reactor.stop())
reactor.run()
"""


@on_reactor
async def test_proxy_in_a_container(rig: DockerRig) -> None:
    """From within a container another one is reached on the network that both are joined to; one that is
    created from there is joined to it."""
    require_docker("demo")
    network = f"{rig.prefix}-net"
    docker("network", "create", "--label", TEST_LABEL, network)
    try:
        rig.create("a", WELL_BEHAVED, "--network", network)
        options = ["--rm", "--label", TEST_LABEL, "--network", network, "--name", f"{rig.prefix}-proxy"]
        mount = ["-v", "/var/run/docker.sock:/var/run/docker.sock"]
        run = ["run", *options, *mount, DEMO_IMAGE, "python3", "-c", IN_A_CONTAINER]
        said = docker(*run, f"{rig.prefix}-a")
        address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        assert said == str([("network", docker("inspect", "-f", address, f"{rig.prefix}-a"))])
        said = docker(*run, f"{rig.prefix}-b", BASE_IMAGE)
        assert said == str([("network", docker("inspect", "-f", address, f"{rig.prefix}-b"))])
    finally:
        remove_containers(rig.prefix)
        docker("network", "rm", network)
