"""A fleet in memory whose models share one GPU, for tests of who runs when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.gate import Lease
from llmproxy.backend.surroundings import Decision
from llmproxy.config.model import BackendSpec, Config, Scheduler
from llmproxy.errors import Refusal
from llmproxy.fleet.fleet import Fleet
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers

__all__ = ["ASLEEP", "AWAKE", "CONTROLS", "GIB", "Client", "Meter", "OneGpu", "answer"]

GIB = 2**30


def answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


AWAKE = answer(b'{"status":"awake"}')
ASLEEP = answer(b'{"status":"sleeping"}')
CONTROLS = {
    "POST /sleep": ASLEEP,
    "POST /wake_up": AWAKE,
    "POST /collective_rpc": answer(b'{"results":[null]}'),
    "POST /reset_prefix_cache": answer(b'{"success":true}'),
    "GET /is_sleeping": answer(b'{"is_sleeping":false}'),
}


class Client:
    """A request that writes down what it is told."""

    def __init__(self, priority: int = 0, *, may_evict: bool = True) -> None:
        self.priority = priority
        self.may_evict = may_evict
        self.lease: Lease | None = None
        self.refusals: list[Refusal] = []
        self.cuts: list[str] = []

    def affinity(self) -> bytes | None:
        return None

    def admitted(self, lease: Lease) -> None:
        assert self.lease is None
        self.lease = lease

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def cut(self, reason: str) -> None:
        self.cuts.append(reason)
        self.done()

    def handed_on(self, route: str | None) -> None:
        raise AssertionError("no configuration changes here")

    def done(self) -> None:
        assert self.lease is not None
        self.lease.release()

    @property
    def served(self) -> bool:
        return self.lease is not None


class Meter:
    """A GPU of 24 GiB whose free memory the test says."""

    def __init__(self, free: int = 24 * GIB) -> None:
        self.now = free

    def total(self, gpu: str) -> int | None:
        return 24 * GIB

    def free(self, gpu: str) -> int | None:
        return self.now


class OneGpu(SynchronousTestCase):
    """Tests with one fleet on one GPU."""

    def build(self, **models: Mapping[str, Any]) -> None:
        """A fleet with these backends; each claims 0.6 of GPU 0 unless it says otherwise."""
        self.clock = Clock()
        self.world = FakeController(hold_stops=True)
        self.servers = Servers(mode="healthy", controls=dict(CONTROLS))
        specs = {
            name: BackendSpec(
                route=name, container=name, models=(name,), **{"gpu_memory": 0.6, "stop_grace": 1.0, **fields}
            )
            for name, fields in models.items()
        }
        self.config = Config(
            backends=specs,
            scheduler=Scheduler(max_wait_before_drain=30, drain_limit=100),
            host_memory_for_sleep=64 * GIB,
        )
        self.fleet = self.start(self.config)
        self.addCleanup(self.end)

    def start(self, config: Config) -> Fleet:
        fleet = Fleet(self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, config)
        self.successResultOf(fleet.start())
        return fleet

    def end(self) -> None:
        self.world.hold_stops = False
        self.fleet.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def ask(self, name: str, priority: int = 0, *, may_evict: bool = True) -> Client:
        client = Client(priority, may_evict=may_evict)
        self.fleet.backends[name].enter(client)
        return client

    def serve(self, name: str) -> None:
        """One short request, with all that it needs."""
        client = self.ask(name)
        self.settle()
        assert client.served, (name, self.states())
        client.done()
        self.settle()

    def settle(self) -> None:
        """Let everything that takes no time happen, stops included."""
        for _ in range(10):
            for route in self.world.stopping():
                self.world.finish_stop(route)
            self.clock.advance(0)

    def states(self) -> dict[str, str]:
        return {name: backend.state for name, backend in self.fleet.backends.items()}

    def decisions(self, name: str) -> list[str]:
        return [
            event.kind for event in self.fleet.events if isinstance(event, Decision) and event.backend == name
        ]
