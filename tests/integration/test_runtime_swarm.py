"""The Swarm runtime against a real Swarm of one node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import define, field
from pytest_twisted import blockon
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.swarm import SwarmRuntime
from tests.contract_runtimes import Reactor, Rig, RuntimeContract
from tests.integration.engine import DEMO_IMAGE, TEST_LABEL
from tests.integration.swarm_world import SwarmWorld
from tests.integration.test_runtime_docker import STUBBORN, WELL_BEHAVED

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

    def create(self, route: str, script: str, *options: str) -> BackendSpec:
        name = f"{self.prefix}-{route}"
        words = ("--detach", "--quiet", "--no-resolve-image", "--name", name, "--label", TEST_LABEL)
        publish = ("--publish", "mode=host,target=8000", "--replicas", "0")
        self.docker("service", "create", *words, *publish, *options, DEMO_IMAGE, "sh", "-c", script)
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
    from tests.integration.engine import unique

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
