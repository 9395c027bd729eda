"""The Swarm runtime against a real Swarm of one node."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
from attrs import define, evolve, field
from pytest_twisted import blockon
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol
from twisted.internet.threads import deferToThread

from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.docker_catalogue import read_labelled_containers
from llmproxy.runtimes.docker_client import make_client
from llmproxy.runtimes.interface import Address, Exit, Instance, RuntimeUnavailable, StartRefused, Task
from llmproxy.runtimes.swarm import SwarmRuntime
from llmproxy.runtimes.swarm_body import with_replicas
from llmproxy.runtimes.swarm_calls import update
from llmproxy.runtimes.swarm_later import read_service_labels
from llmproxy.runtimes.swarm_scale import end_run
from llmproxy.runtimes.swarm_state import SwarmService
from tests.contract_runtimes import Reactor, Rig, RuntimeContract, eventually, gone, on_reactor, pause, runs
from tests.fakes import RecordingWatcher
from tests.integration.engine import DEMO_IMAGE, TEST_LABEL, require_docker, unique
from tests.integration.swarm_world import SwarmWorld
from tests.integration.test_runtime_docker import STUBBORN, WELL_BEHAVED
from tests.integration.world import ROOT

T = TypeVar("T")

REACTOR: Reactor = global_reactor
pytestmark = pytest.mark.docker


@define
class SwarmRig:
    """A runtime, and services whose names begin with ``prefix``.

    The tests are in another network namespace than the engine, as on another machine: they reach tasks by
    ports that the node publishes.
    """

    reactor: Reactor
    world: SwarmWorld
    prefix: str
    can_stop: bool = True
    runtime: SwarmRuntime = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.runtime = self.make_runtime()
        self.runtime.start()

    @property
    def settings(self) -> DockerSettings:
        return DockerSettings(host=self.world.manager.host)

    def make_runtime(self) -> SwarmRuntime:
        return SwarmRuntime(self.reactor, self.settings, backend_key="k")

    def docker(self, *arguments: str, **options: Any) -> str:
        return self.world.manager.docker(*arguments, **options)

    def create(
        self,
        route: str,
        script: str | None,
        *options: str,
        image: str = DEMO_IMAGE,
        command: Sequence[str] = (),
    ) -> BackendSpec:
        """Create a service of no tasks that runs a script, or a command."""
        name = f"{self.prefix}-{route}"
        words = ("--detach", "--quiet", "--no-resolve-image", "--name", name, "--label", TEST_LABEL)
        publish = ("--publish", "mode=host,target=8000", "--replicas", "0")
        run = command if script is None else ("sh", "-c", script)
        self.docker("service", "create", *words, *publish, *options, image, *run)
        return BackendSpec(route, runtime="swarm", service=name, port=8000)

    def spec(self, route: str) -> BackendSpec:
        if route == "never":
            return BackendSpec(route, runtime="swarm", service=f"{self.prefix}-never")
        return self.create(route, WELL_BEHAVED)

    def stubborn(self, route: str) -> BackendSpec:
        return self.create(route, STUBBORN, "--init", "--stop-grace-period", "30s")

    def brief(self, route: str) -> BackendSpec:
        return self.create(route, "exit 3")

    def broken(self, route: str) -> BackendSpec:
        return BackendSpec(route, runtime="swarm", service=f"{self.prefix}-missing")

    def containers(self, spec: BackendSpec) -> list[str]:
        label = f"label=com.docker.swarm.service.name={spec.service}"
        return self.docker("ps", "--quiet", "--no-trunc", "--filter", label).split()

    def inspect(self, spec: BackendSpec) -> dict[str, Any]:
        """``GET /services/...``."""
        found: list[dict[str, Any]] = json.loads(self.docker("service", "inspect", str(spec.service)))
        return found[0]

    def add_label(self, spec: BackendSpec, label: str) -> None:
        """What somebody else changes of the service; the docker command itself does not try again."""
        client = make_client(self.settings)
        try:
            update(
                client,
                str(spec.service),
                lambda found: with_replicas(found.spec, found.replicas or 0, {label: ""}),
            )
        finally:
            client.close()

    async def kill(self, spec: BackendSpec) -> None:
        self.docker("kill", *self.containers(spec))

    async def close(self) -> None:
        await self.runtime.close()


@pytest.fixture(scope="module")
def world() -> Iterator[SwarmWorld]:
    made = SwarmWorld.make(workers=0)
    try:
        yield made
    finally:
        made.manager.kill()
        made.close()


@pytest.fixture
def rig(world: SwarmWorld) -> Iterator[Rig]:
    """A runtime for one test; its services are removed afterwards."""
    if not world.manager.runs:
        world.recover()  # its end has failed the test before
    made = SwarmRig(REACTOR, world, unique("sw"))
    try:
        yield made
    finally:
        blockon(Deferred.fromCoroutine(made.close()))
        names = made.docker(
            "service", "ls", "--format", "{{.Name}}", "--filter", f"name={made.prefix}"
        ).split()
        if names:
            made.docker("service", "rm", *names, check=False)


class TestSwarmRuntime(RuntimeContract):
    """The contract."""


def replicas(rig: SwarmRig, spec: BackendSpec) -> int:
    """How many tasks are wanted."""
    return int(rig.inspect(spec)["Spec"]["Mode"]["Replicated"]["Replicas"])


def present(watcher: RecordingWatcher) -> Instance:
    """What was last told of what runs."""
    found = [event[1] for event in watcher.events if event[0] == "running"][-1]
    assert isinstance(found, Instance)
    return found


def tasks(watcher: RecordingWatcher) -> list[Task]:
    """Those of the last that was told, but for those that leave."""
    if watcher.events[-1][0] != "running":
        return []
    return [task for task in present(watcher).tasks if not task.leaving]


@on_reactor
async def test_missing_image(rig: SwarmRig) -> None:
    """An image that no node has is told by Swarm's own words, and the service is scaled to 0 again."""
    spec = rig.create("a", WELL_BEHAVED, image="localhost:1/llmproxy-test/none:1")
    with pytest.raises(StartRefused, match="No such image: localhost:1/llmproxy-test/none:1") as caught:
        await rig.runtime.ensure_started(spec)
    assert "Each node gets the image itself" in str(caught.value.hint)
    assert replicas(rig, spec) == 0


@on_reactor
async def test_no_room(rig: SwarmRig) -> None:
    """One that no node has room for says so while it waits, is refused after its time, and scaled to 0."""
    spec = evolve(rig.create("a", WELL_BEHAVED, "--generic-resource", "NVIDIA-GPU=2"), start_timeout=3.0)
    steps: list[Phase] = []
    with pytest.raises(
        StartRefused, match=r"no suitable node \(insufficient resources on 1 node\)"
    ) as caught:
        await rig.runtime.ensure_started(spec, steps.append)
    assert "reserve less" in str(caught.value.hint)
    assert "no suitable node (insufficient resources on 1 node)" in [step.reason for step in steps]
    assert replicas(rig, spec) == 0


@on_reactor
async def test_no_such_node(rig: SwarmRig) -> None:
    """Constraints that no node meets are told as such."""
    spec = evolve(rig.create("a", WELL_BEHAVED, "--constraint", "node.labels.gpu==a100"), start_timeout=2.0)
    with pytest.raises(StartRefused, match="scheduling constraints not satisfied") as caught:
        await rig.runtime.ensure_started(spec)
    assert "constraints" in str(caught.value.hint)


@on_reactor
async def test_bad_command(rig: SwarmRig) -> None:
    """A command that is not in the image is refused with a hint."""
    spec = rig.create("a", None, command=("/no/such/command",))
    with pytest.raises(StartRefused, match="no/such/command") as caught:
        await rig.runtime.ensure_started(spec)
    assert "The command or a mounted path does not exist" in str(caught.value.hint)
    assert replicas(rig, spec) == 0


@on_reactor
async def test_global_mode(rig: SwarmRig) -> None:
    """A service that runs once on each node cannot be scaled, and the hint says what can be done."""
    name = f"{rig.prefix}-a"
    words = ("--detach", "--quiet", "--no-resolve-image", "--mode", "global", "--constraint", "node.id==none")
    rig.docker("service", "create", *words, "--name", name, DEMO_IMAGE, "sleep", "600")
    with pytest.raises(StartRefused, match="mode global") as caught:
        await rig.runtime.ensure_started(BackendSpec("a", runtime="swarm", service=name))
    assert "replicated" in str(caught.value.hint)


@on_reactor
async def test_nobody_tries_again(rig: SwarmRig) -> None:
    """When the last task fails the service is scaled to 0 before that is told; its last words are kept."""
    watcher = RecordingWatcher()
    spec = rig.create("a", "echo hello; sleep 1; echo bye; exit 7", "--restart-delay", "500ms")
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
    assert dict(gone(watcher))[instance.run] == Exit(7)
    assert replicas(rig, spec) == 0
    assert await rig.runtime.logs(spec, 2) == "hello\nbye"
    await pause(rig.reactor, 1.5)
    assert runs(watcher) == [instance.run]
    assert rig.containers(spec) == []


@on_reactor
async def test_out_of_memory(rig: SwarmRig) -> None:
    """A task that the kernel kills for memory says so where it is on our own engine."""
    script = "import time; time.sleep(0.5); x = bytearray(200 * 2**20); time.sleep(60)"
    spec = rig.create("a", None, "--limit-memory", "24m", command=("python3", "-c", script))
    watcher = RecordingWatcher()
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
    assert dict(gone(watcher))[instance.run] == Exit(137, oom=True)


@on_reactor
async def test_scaled_by_hand(rig: SwarmRig) -> None:
    """What somebody else starts and stops is adopted and told; a removed service is gone."""
    watcher, spec = RecordingWatcher(), rig.spec("a")
    await rig.runtime.watch(spec, watcher)
    rig.docker("service", "scale", "--detach", f"{spec.service}=2")
    await eventually(rig.reactor, lambda: len(tasks(watcher)) == 2)
    assert present(watcher).replicas == 2
    first = present(watcher).run
    rig.docker("service", "scale", "--detach", f"{spec.service}=0")
    await eventually(rig.reactor, lambda: first in dict(gone(watcher)))
    second = await rig.runtime.ensure_started(spec)
    assert second.run != first
    rig.docker("service", "rm", str(spec.service))
    await eventually(rig.reactor, lambda: second.run in dict(gone(watcher)))
    assert "changed" in watcher.kinds()
    with pytest.raises(StartRefused, match="does not exist"):
        await rig.runtime.ensure_started(spec)


@on_reactor
async def test_several(rig: SwarmRig) -> None:
    """Scaling only goes up, a retired task is the very one, and the run goes on until the last has ended."""
    watcher, spec = RecordingWatcher(), rig.spec("a")
    await rig.runtime.scale(spec, 2)
    assert replicas(rig, spec) == 0, "what does not run is not scaled"
    await rig.runtime.watch(spec, watcher)
    run = (await rig.runtime.ensure_started(spec)).run
    await rig.runtime.scale(spec, 3)
    await rig.runtime.scale(spec, 2)
    await eventually(rig.reactor, lambda: len(tasks(watcher)) == 3)
    assert len({task.addresses for task in tasks(watcher)}) == 3
    chosen = tasks(watcher)[1].id
    assert rig.runtime.can_choose(spec, chosen)
    assert not rig.runtime.can_choose(spec, "nobody")
    await rig.runtime.retire(spec, chosen, 2)
    await pause(rig.reactor, 0.5)
    assert replicas(rig, spec) == 3, "there are not two"
    await rig.runtime.retire(spec, chosen, 3)
    await eventually(rig.reactor, lambda: present(watcher).replicas == 2 and len(present(watcher).tasks) == 2)
    await pause(rig.reactor, 1.5)
    assert len(tasks(watcher)) == 2
    assert chosen not in [task.id for task in tasks(watcher)]
    await rig.runtime.retire(spec, "", 2)
    await eventually(rig.reactor, lambda: len(tasks(watcher)) == 1)
    assert runs(watcher) == [run]
    assert [each for each, _ in gone(watcher)] == [None]
    await rig.runtime.stop(spec, 10)
    await eventually(rig.reactor, lambda: run in dict(gone(watcher)))


@on_reactor
async def test_one_of_several_fails(rig: SwarmRig) -> None:
    """Where others run the failed one is left to Swarm, which puts another in its place."""
    watcher, spec = RecordingWatcher(), rig.create("a", WELL_BEHAVED, "--restart-delay", "300ms")
    await rig.runtime.watch(spec, watcher)
    run = (await rig.runtime.ensure_started(spec)).run
    await rig.runtime.scale(spec, 2)
    await eventually(rig.reactor, lambda: len(tasks(watcher)) == 2)
    before = {task.id for task in tasks(watcher)}
    rig.docker("kill", rig.containers(spec)[0])
    await eventually(rig.reactor, lambda: len(tasks(watcher)) == 1)
    await eventually(rig.reactor, lambda: len(tasks(watcher)) == 2)
    assert len(before & {task.id for task in tasks(watcher)}) == 1
    assert runs(watcher) == [run]


@on_reactor
async def test_two_proxies(rig: SwarmRig) -> None:
    """Two proxies that scale, note and retire at the same moment, while somebody else changes the service,
    lose nothing of each other's: the larger need is met, one retires one, and no note of theirs is told as
    a change."""
    watchers = RecordingWatcher(), RecordingWatcher()
    spec, other = rig.spec("a"), rig.make_runtime()
    other.start()
    both = rig.runtime, other
    try:
        for runtime, watcher in zip(both, watchers, strict=True):
            await runtime.watch(spec, watcher)
        started = await gather(runtime.ensure_started(spec) for runtime in both)
        assert len({instance.run for instance in started}) == 1
        assert len(await begun(rig, spec)) == 1
        told: list[None] = []
        other.on_catalogue_change(lambda: told.append(None))
        labelled = [deferToThread(rig.add_label, spec, f"x{number}") for number in range(3)]
        await gather(
            change
            for wanted in (2, 3)
            for runtime in both
            for change in (runtime.scale(spec, wanted), runtime.scale(spec, wanted))
        )
        for runtime in both:
            runtime.note_use(spec, 3)
        await gather(labelled)
        for watcher in watchers:
            await eventually(rig.reactor, lambda watcher=watcher: len(tasks(watcher)) == 3)  # type: ignore[misc]
            await eventually(rig.reactor, lambda watcher=watcher: present(watcher).used_at)  # type: ignore[misc]
            assert present(watcher).needed_at
        labels = rig.inspect(spec)["Spec"]["Labels"]
        assert {"x0", "x1", "x2"} <= labels.keys()
        assert len([label for label in labels if label.startswith("llmproxy.used.")]) == 2
        task = tasks(watchers[0])[0].id
        await gather(runtime.retire(spec, task, 3) for runtime in both)
        for watcher in watchers:
            await eventually(rig.reactor, lambda watcher=watcher: len(tasks(watcher)) == 2)  # type: ignore[misc]
        await pause(rig.reactor, 1.0)
        assert replicas(rig, spec) == 2
        assert told == []
        assert [set(watcher.kinds()[1:]) for watcher in watchers] == [{"running"}] * 2
        await gather(runtime.stop(spec, 10) for runtime in both)
        for watcher in watchers:
            await eventually(rig.reactor, lambda watcher=watcher: len(gone(watcher)) == 2)  # type: ignore[misc]
    finally:
        await other.close()


@on_reactor
async def test_started_again_by_another(rig: SwarmRig) -> None:
    """A proxy that ends a failed run leaves the run alone that another one has begun since."""
    spec = rig.spec("a")
    await rig.runtime.ensure_started(spec)
    mark = rig.inspect(spec)["Spec"]["Labels"]["llmproxy.run"]
    client = make_client(rig.settings)
    try:
        end_run(client, str(spec.service), "another")
        assert replicas(rig, spec) == 1
        end_run(client, str(spec.service), mark)
        assert replicas(rig, spec) == 0
    finally:
        client.close()


@on_reactor
async def test_busy_service(rig: SwarmRig) -> None:
    """An update that is out of sequence is repeated, and given up with a word about it when it always is."""
    spec = rig.spec("a")
    client = make_client(rig.settings)
    tries: list[int] = []

    def change(service: SwarmService) -> dict[str, Any]:
        tries.append(service.version)
        if len(tries) < 3 or stubborn:
            rig.docker(
                "service", "update", "--detach", "--quiet", "--label-add", f"n={len(tries)}", service.name
            )
        return with_replicas(service.spec, 0, {"mine": "1"})

    try:
        stubborn = False
        assert update(client, str(spec.service), change) is not None
        assert len(tries) == 3
        assert rig.inspect(spec)["Spec"]["Labels"]["mine"] == "1"
        assert rig.inspect(spec)["Spec"]["Labels"]["n"] == "2"
        stubborn = True
        with pytest.raises(RuntimeUnavailable, match="changed by others all the time"):
            update(client, str(spec.service), change)
    finally:
        client.close()


@on_reactor
async def test_only_its_own(rig: SwarmRig) -> None:
    """Of a service of somebody else nothing is changed but the count and labels of llmproxy, and its tasks go
    on when a note is written."""
    spec = rig.create("a", WELL_BEHAVED, "--label", "theirs=1", "--env", "A=b", "--limit-memory", "100m")
    before = rig.inspect(spec)["Spec"]
    watcher = RecordingWatcher()
    await rig.runtime.watch(spec, watcher)
    await rig.runtime.ensure_started(spec)
    containers = rig.containers(spec)
    rig.runtime.note_use(spec, 1)
    await eventually(
        rig.reactor, lambda: any("used" in label for label in rig.inspect(spec)["Spec"]["Labels"])
    )
    await pause(rig.reactor, 1.0)
    assert rig.containers(spec) == containers
    after = rig.inspect(spec)["Spec"]
    theirs = {label: text for label, text in after["Labels"].items() if not label.startswith("llmproxy.")}
    assert theirs == {label: text for label, text in before["Labels"].items() if label != "llmproxy.test"}
    assert {**after, "Labels": None, "Mode": None} == {**before, "Labels": None, "Mode": None}


@on_reactor
async def test_created_from_image(rig: SwarmRig) -> None:
    """A missing service with an image is created, and made anew when its settings have changed."""
    watcher = RecordingWatcher()
    spec = BackendSpec(
        "a",
        runtime="swarm",
        service=f"{rig.prefix}-a",
        image=DEMO_IMAGE,
        args=("python3", "-m", "http.server", "8000"),
        environment={"COLOUR": "red"},
        port=8000,
        stop_grace=7.0,
        constraints=("node.role == manager",),
    )
    facts = await rig.runtime.facts(spec)
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    assert [address.via for address in instance.addresses] == ["published"]
    await answers(rig, instance.addresses[0])
    found = rig.inspect(spec)["Spec"]
    container = found["TaskTemplate"]["ContainerSpec"]
    assert found["Labels"]["llmproxy.managed"] == "true"
    assert found["Labels"]["llmproxy.managed.route"] == "a"
    assert {"COLOUR=red", "VLLM_API_KEY=k"} == set(container["Env"])
    assert container["StopGracePeriod"] == 7_000_000_000
    assert {"Type": "tmpfs", "Target": "/dev/shm"} in container["Mounts"]
    assert found["TaskTemplate"]["Placement"]["Constraints"] == ["node.role == manager"]
    assert found["TaskTemplate"]["RestartPolicy"]["Delay"] == 5_000_000_000
    assert (await rig.runtime.facts(spec)).fingerprint == facts.fingerprint
    id = rig.inspect(spec)["ID"]
    changed = evolve(spec, environment={"COLOUR": "blue"})
    assert (await rig.runtime.ensure_started(changed)).run == instance.run, "what runs is left alone"
    await rig.runtime.stop(spec, 0)
    await rig.runtime.ensure_started(changed)
    assert rig.inspect(spec)["ID"] == id
    assert "COLOUR=blue" in rig.inspect(spec)["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"]
    assert (await rig.runtime.facts(changed)).environment["COLOUR"] == "blue"
    await rig.runtime.stop(spec, 0)
    assert "changed" not in watcher.kinds()


@on_reactor
async def test_reservations(rig: SwarmRig) -> None:
    """What a created service's tasks reserve is asked of the nodes."""
    spec = BackendSpec(
        "a",
        runtime="swarm",
        service=f"{rig.prefix}-a",
        image=DEMO_IMAGE,
        args=("sh", "-c", WELL_BEHAVED),
        port=8000,
        reservations={"NVIDIA-GPU": 1},
        start_timeout=2.0,
    )
    with pytest.raises(StartRefused, match="insufficient resources"):
        await rig.runtime.ensure_started(spec)
    found = rig.inspect(spec)["Spec"]["TaskTemplate"]["Resources"]["Reservations"]["GenericResources"]
    assert found == [{"DiscreteResourceSpec": {"Kind": "NVIDIA-GPU", "Value": 1}}]


@on_reactor
async def test_drained_node(rig: SwarmRig) -> None:
    """When Swarm itself ends the last task, as its node is drained, the service stays as it is wanted, and
    what Swarm starts in its place is adopted as another run."""
    watcher, spec = RecordingWatcher(), rig.create("a", WELL_BEHAVED, "--restart-delay", "300ms")
    await rig.runtime.watch(spec, watcher)
    run = (await rig.runtime.ensure_started(spec)).run
    node = rig.docker("node", "ls", "--quiet")
    rig.docker("node", "update", "--availability", "drain", node)
    try:
        await eventually(rig.reactor, lambda: run in dict(gone(watcher)))
        assert replicas(rig, spec) == 1
    finally:
        rig.docker("node", "update", "--availability", "active", node)
    await eventually(rig.reactor, lambda: len(runs(watcher)) == 2)
    await rig.runtime.stop(spec, 10)
    await eventually(rig.reactor, lambda: runs(watcher)[1] in dict(gone(watcher)))


@on_reactor
async def test_stopped_while_it_waits(rig: SwarmRig) -> None:
    """A stop ends the waiting of a start that finds no node, and the service is scaled to 0."""
    spec = rig.create("a", WELL_BEHAVED, "--generic-resource", "NVIDIA-GPU=2")
    steps: list[Phase] = []
    starting = rig.runtime.ensure_started(spec, steps.append)
    await eventually(rig.reactor, lambda: any(step.reason for step in steps))
    await rig.runtime.stop(spec, 10)
    with pytest.raises(StartRefused, match="stopped before it ran"):
        await starting
    assert replicas(rig, spec) == 0


@on_reactor
async def test_routes_by_label(rig: SwarmRig) -> None:
    """Services with a route label are routes; their coming, going and new labels are told, scaling is not."""
    told: list[None] = []
    rig.runtime.on_catalogue_change(lambda: told.append(None))
    own = ("--label", "llmproxy.route=x", "--label", "llmproxy.port=8000")
    spec = rig.create("x", WELL_BEHAVED, *own, "--container-label", "llmproxy.route=y")
    await eventually(rig.reactor, lambda: told)
    found = await rig.runtime.catalogue()
    labels = {"llmproxy.route": "x", "llmproxy.port": "8000"}
    assert found == [LabelledContainer(str(spec.service), labels, kind="service")]
    assert read_service_labels(rig.settings, 5) == found
    backend = read_sources(Sources({}, containers=found)).backends["x"]
    assert (backend.runtime, backend.service, backend.port) == ("swarm", spec.service, 8000)
    await pause(rig.reactor, 0.5)
    del told[:]
    await rig.runtime.ensure_started(spec)
    assert read_labelled_containers(rig.settings, 5) == [], "a task's container is no route of its own"
    await rig.runtime.stop(spec, 0)
    await pause(rig.reactor, 0.5)
    assert told == []
    rig.docker(
        "service", "update", "--detach", "--quiet", "--label-add", "llmproxy.idle=5m", str(spec.service)
    )
    await eventually(rig.reactor, lambda: told)
    del told[:]
    rig.docker("service", "rm", str(spec.service))
    await eventually(rig.reactor, lambda: told)
    assert await rig.runtime.catalogue() == []


@on_reactor
async def test_logs_of_several(rig: SwarmRig) -> None:
    """Lines of all tasks are put together by their time, and followed; long ones stay whole."""
    script = "echo begin $(hostname); n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done"
    watcher, spec = RecordingWatcher(), rig.create("a", script)
    await rig.runtime.watch(spec, watcher)
    await rig.runtime.ensure_started(spec)
    await rig.runtime.scale(spec, 2)
    await eventually(rig.reactor, lambda: len(tasks(watcher)) == 2)
    await pause(rig.reactor, 0.5)
    lines = (await rig.runtime.logs(spec, 100)).splitlines()
    assert len([line for line in lines if line.startswith("begin ")]) == 2
    assert all(line.startswith(("begin ", "line ")) for line in lines)
    assert len((await rig.runtime.logs(spec, 3)).splitlines()) == 3
    heard: list[str] = []
    following = rig.runtime.follow_logs(spec, 0, heard.append)
    await eventually(rig.reactor, lambda: len(heard) > 4)
    assert not any(line.startswith("begin ") for line in heard)
    await rig.runtime.stop(spec, 0)
    await following


@on_reactor
async def test_not_a_manager(rig: SwarmRig) -> None:
    """An engine that manages no Swarm says so in everything, with what to do about it."""
    require_docker()
    runtime = SwarmRuntime(REACTOR, DockerSettings())
    runtime.start()
    spec, watcher = BackendSpec("a", runtime="swarm", service="a"), RecordingWatcher()
    try:
        with pytest.raises(RuntimeUnavailable, match="docker swarm init"):
            await runtime.ping()
        with pytest.raises(RuntimeUnavailable, match="docker swarm init"):
            await runtime.ensure_started(spec)
        with pytest.raises(RuntimeUnavailable, match="docker swarm init"):
            await runtime.catalogue()
        await runtime.watch(spec, watcher)
        assert watcher.events == []
        assert read_service_labels(DockerSettings(), 5) == []
    finally:
        await runtime.close()


ON_THE_HOST = """
import sys
from twisted.internet import reactor
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.swarm import SwarmRuntime
runtime = SwarmRuntime(reactor, DockerSettings(host=sys.argv[1]))
runtime.start()
started = runtime.ensure_started(BackendSpec("a", runtime="swarm", service=sys.argv[2], port=8000))
started.addCallback(lambda found: print([(each.via, each.host, each.port) for each in found.addresses]))
started.addErrback(print).addBoth(lambda _: reactor.stop())
reactor.run()
"""


@on_reactor
async def test_proxy_on_the_host(rig: SwarmRig) -> None:
    """A proxy on the host of a node reaches the tasks there by their leg on docker_gwbridge, where neither a
    network nor a port leads to them; the others it cannot reach."""
    name = f"{rig.prefix}-a"
    words = ("--detach", "--quiet", "--no-resolve-image", "--name", name, "--network", rig.world.network)
    serve = ("python3", "-m", "http.server", "8000")
    rig.docker("service", "create", *words, "--replicas", "0", DEMO_IMAGE, *serve)
    inside = rig.world.manager.inside
    command = inside(sys.executable, "-c", ON_THE_HOST, rig.settings.host or "", name)
    found = ast.literal_eval(said_by(command))
    assert [(via, port) for via, _, port in found] == [("bridge", 8000)]
    url = f"http://{found[0][1]}:8000/"
    get = f"import time, urllib.request as r; time.sleep(1); print(r.urlopen({url!r}, timeout=5).status)"
    assert said_by(inside("python3", "-c", get)) == "200"


IN_A_CONTAINER = ON_THE_HOST.replace("service=sys.argv[2]", "service=sys.argv[2], **eval(sys.argv[3])")


@on_reactor
async def test_proxy_in_a_container(rig: SwarmRig) -> None:
    """From a container on an overlay network its tasks are reached by their own addresses there; a service
    that is created from there is joined to that network and publishes nothing."""
    host, network = rig.settings.host or "", rig.world.network
    name = f"{rig.prefix}-a"
    words = ("--detach", "--quiet", "--no-resolve-image", "--name", name, "--network", network)
    rig.docker("service", "create", *words, "--replicas", "0", DEMO_IMAGE, "sleep", "600")
    places = [str(ROOT), str(rig.world.manager.folder)]
    run = ["run", "--rm", "--network", network, *(f"--volume={place}:{place}" for place in places)]
    run += ["--workdir", str(ROOT), DEMO_IMAGE, "python3", "-c", IN_A_CONTAINER, host]
    found = ast.literal_eval(rig.docker(*run, name, "{}"))
    assert [(via, port) for via, _, port in found] == [("network", 8000)]
    task = json.loads(rig.docker("inspect", rig.docker("service", "ps", "--quiet", name)))[0]
    assert f"{found[0][1]}/24" in [each for one in task["NetworksAttachments"] for each in one["Addresses"]]
    made = f"{rig.prefix}-b"
    found = ast.literal_eval(rig.docker(*run, made, f"dict(image={DEMO_IMAGE!r}, args=('sleep', '600'))"))
    assert [via for via, _, _ in found] == ["network"]
    spec = json.loads(rig.docker("service", "inspect", made))[0]["Spec"]
    assert "Ports" not in spec["EndpointSpec"]


def said_by(command: Sequence[str]) -> str:
    """What it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


async def answers(rig: SwarmRig, address: Address) -> None:
    """Wait until something listens there."""
    for _ in range(100):
        try:
            where = HostnameEndpoint(rig.reactor, address.host, address.port)
            protocol = await connectProtocol(where, Protocol())
        except ConnectError:
            await pause(rig.reactor, 0.1)
        else:
            assert protocol.transport is not None
            protocol.transport.loseConnection()
            return
    raise AssertionError("nothing listens")


async def gather(deferreds: Iterable[Deferred[T]]) -> list[T]:
    """What they fire with, all together."""
    return list(await gatherResults(list(deferreds), consumeErrors=True))


async def begun(rig: SwarmRig, spec: BackendSpec) -> list[str]:
    """Ids of all tasks that there have been."""
    return rig.docker("service", "ps", "--quiet", str(spec.service)).split()
