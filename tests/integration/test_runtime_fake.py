"""The runtime in memory keeps the contract, so that tests over it mean something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import define, field
from twisted.internet import reactor as global_reactor
from twisted.internet.interfaces import IDelayedCall

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.hosts import HostsRuntime
from llmproxy.runtimes.interface import IRuntime
from tests.contract_runtimes import Reactor, Rig, RuntimeContract
from tests.fake_hosts import FakeEngine
from tests.fake_swarm import FakeReplicator, FakeSwarm
from tests.fakes import FakeController, FakeRuntime


@define
class FakeRig:
    """The fake in a world where things take their time."""

    reactor: Reactor
    world: FakeController = field(factory=FakeController)
    can_stop: bool = True
    runtime: IRuntime = field(init=False)
    timers: list[IDelayedCall] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.runtime = self.make_runtime()
        self.runtime.start()

    def make_runtime(self) -> IRuntime:
        return FakeRuntime(self.world)

    def spec(self, route: str) -> BackendSpec:
        if route == "a":
            self.world.on_started = lambda route: self.world.print_line(route, "hello")
        return BackendSpec(route)

    def stubborn(self, route: str) -> BackendSpec:
        self.world.hold_stops = True
        self.world.on_stop = lambda route, grace: self._kill_later(route, grace)
        return self.spec(route)

    def _kill_later(self, route: str, grace: float) -> None:
        def kill() -> None:
            if self.world.is_running(route):
                self.world.exit(route, 137)

        timer = self.reactor.callLater(grace, kill)
        self.timers.append(timer)

    def brief(self, route: str) -> BackendSpec:
        self.world.on_started = lambda route: self.world.exit(route, 3)
        return BackendSpec(route)

    def broken(self, route: str) -> BackendSpec:
        self.world.refuse_next_start(route, "no such image", "pull it")
        return BackendSpec(route)

    async def kill(self, spec: BackendSpec) -> None:
        self.world.exit(spec.route, 137)

    async def close(self) -> None:
        await self.runtime.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A fake for one test."""
    made = FakeRig(global_reactor)
    yield made
    for timer in made.timers:
        if timer.active():
            timer.cancel()


class TestFakeRuntime(RuntimeContract):
    """The contract."""


@define
class FakeSwarmRig(FakeRig):
    """The fake of several tasks."""

    world: FakeSwarm = field(factory=FakeSwarm)

    def make_runtime(self) -> IRuntime:
        return FakeReplicator(self.world)


class TestFakeSwarm(RuntimeContract):
    """The contract holds of several tasks, too."""

    @pytest.fixture
    def rig(self) -> Iterator[Rig]:
        """One for one test."""
        made = FakeSwarmRig(global_reactor)
        yield made
        for timer in made.timers:
            if timer.active():
                timer.cancel()


@define
class FakeHostsRig(FakeRig):
    """Two hosts as one runtime; what is not placed starts on the first."""

    def make_runtime(self) -> IRuntime:
        engines = {"local": FakeEngine(self.world), "rack": FakeEngine(FakeController())}
        return HostsRuntime(engines)


class TestFakeHosts(RuntimeContract):
    """The contract holds of several hosts, too."""

    @pytest.fixture
    def rig(self) -> Iterator[Rig]:
        """One for one test."""
        made = FakeHostsRig(global_reactor)
        yield made
        for timer in made.timers:
            if timer.active():
                timer.cancel()
