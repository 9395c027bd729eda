"""A full cluster: idle backends leave nodes where a pending task then fits."""

from __future__ import annotations

from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.backend import Backend
from llmproxy.backend.surroundings import Decision
from llmproxy.config.model import BackendSpec, Config, Replicas, Scheduler
from llmproxy.engines.phases import Phase
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.pressure import AFTER, LOOK_EVERY
from llmproxy.runtimes.interface import Reservations, RuntimeUnavailable
from tests.fake_swarm import FakeReplicator, FakeSwarm
from tests.inmemory import Servers
from tests.one_gpu import Client

VRAM = "vram-gib"


@define(eq=False)
class Nodes:
    """What the managers say."""

    rooms: dict[str, dict[str, int]] = field(factory=lambda: {"node1": {VRAM: 24}})
    needs: dict[str, dict[str, int]] = field(factory=dict)
    taken: dict[str, dict[str, int]] = field(factory=dict)
    asked: int = 0
    away: bool = False


class FakeCluster(FakeReplicator):
    """See :class:`llmproxy.runtimes.interface.ICluster`."""

    def __init__(self, swarm: FakeSwarm, nodes: Nodes) -> None:
        super().__init__(swarm)
        self.nodes = nodes

    def reservations(self) -> Deferred[Reservations]:
        self.nodes.asked += 1
        if self.nodes.away:
            return fail(RuntimeUnavailable("no quorum"))
        nodes = self.nodes
        return succeed(Reservations(nodes.rooms, nodes.needs, nodes.taken, dict.fromkeys(nodes.needs)))

    def service_of(self, spec: BackendSpec) -> str:
        return f"llmproxy-{spec.route}"


class PressureTests(SynchronousTestCase):
    """Models of 16 GiB and one node of 24 GiB."""

    def setUp(self) -> None:
        self.build()

    def build(self, **fields: Any) -> None:
        self.clock = Clock()
        self.world = FakeSwarm(hold_starts=True)
        self.nodes = Nodes()
        self.servers = Servers(mode="healthy")
        specs = {
            name: BackendSpec(name, runtime="swarm", service=f"llmproxy-{name}", models=(name,))
            for name in ("a", "b")
        }
        specs["a"] = evolve(specs["a"], **fields)
        self.nodes.needs = {f"llmproxy-{name}": {VRAM: 16} for name in specs}
        config = Config(backends=specs, scheduler=Scheduler(max_wait_before_drain=30))
        runtime = self.cluster = FakeCluster(self.world, self.nodes)
        self.fleet = Fleet(self.clock, self.servers.connect, {"swarm": runtime}, config)
        self.fleet.start()
        self.first = self.ask("a")
        self.world.finish_start("a")
        self.nodes.taken = {"llmproxy-a": {"node1": 1}}
        self.clock.advance(1)
        self.assertEqual(self.backend("a").state, "ready")

    def tearDown(self) -> None:
        self.end()

    def end(self) -> None:
        self.fleet.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def backend(self, name: str) -> Backend:
        return self.fleet.backends[name]

    def ask(self, name: str) -> Client:
        client = Client()
        self.backend(name).enter(client)
        return client

    def pend(self) -> Client:
        """Somebody asks for b, which finds no node."""
        client = self.ask("b")
        self.world._starts["b"].step(Phase("placing", reason="no suitable node"))
        return client

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / LOOK_EVERY)):
            self.clock.advance(LOOK_EVERY)

    def evicted(self) -> list[tuple[str, str | None, str]]:
        return [
            (event.kind, event.whom, event.reason)
            for event in self.fleet.events
            if isinstance(event, Decision) and event.kind in ("evict", "drain")
        ]

    def test_an_idle_one_leaves(self) -> None:
        """It leaves when the other one has been pending for a moment, and whom it leaves for is told."""
        self.first.done()
        waiting = self.pend()
        self.wait(AFTER + 1)
        self.assertEqual(self.backend("a").state, "absent")
        self.assertEqual([told[:2] for told in self.evicted()], [("evict", "b")])
        self.assertIn("fits on no node", self.evicted()[0][2])
        self.nodes.taken = {"llmproxy-b": {"node1": 1}}
        self.world.finish_start("b")
        self.clock.advance(1)
        self.assertTrue(waiting.served)

    def test_a_moment_is_no_pressure(self) -> None:
        """A task that is placed at once asks nothing of anybody."""
        self.first.done()
        self.pend()
        self.wait(AFTER - 1)
        self.world.finish_start("b")
        self.wait(10)
        self.assertEqual((self.backend("a").state, self.nodes.asked), ("ready", 0))

    def test_a_busy_one_drains(self) -> None:
        """It drains when the other one has waited for long, and nothing of it is cut."""
        self.pend()
        self.wait(20)
        self.assertEqual(self.backend("a").state, "ready")
        self.wait(15)
        self.assertEqual(self.backend("a").state, "draining")
        self.first.done()
        self.clock.advance(0)
        self.assertEqual((self.backend("a").state, self.first.cuts), ("absent", []))
        self.assertEqual([told[:2] for told in self.evicted()], [("drain", "b")])

    def test_where_there_is_room(self) -> None:
        """Nobody leaves where it would not help, or where managers find room by themselves."""
        self.first.done()
        self.pend()
        self.nodes.rooms["node2"] = {VRAM: 24}
        self.wait(40)
        self.assertEqual(self.backend("a").state, "ready")
        del self.nodes.rooms["node2"]
        self.nodes.needs["llmproxy-b"] = {VRAM: 48}
        self.wait(40)
        self.assertEqual((self.backend("a").state, self.evicted()), ("ready", []))

    def test_who_stays(self) -> None:
        """What is pinned, has to run, or is used by another proxy is left alone."""
        cases: tuple[dict[str, Any], ...] = ({"pinned": True}, {"replicas": Replicas(1, 1)}, {})
        for fields in cases:
            self.end()
            self.build(**fields)
            self.first.done()
            if not fields:
                self.world.say("a", used_at=self.clock.seconds() + 30)
            self.pend()
            self.wait(25)
            self.assertEqual((self.backend("a").state, self.evicted()), ("ready", []), fields)

    def test_somebody_else_s(self) -> None:
        """Services that are no backends take room, and are left alone."""
        self.first.done()
        self.nodes.needs["other"] = {VRAM: 8}
        self.nodes.taken["other"] = {"node1": 1}
        self.pend()
        self.wait(AFTER + 1)
        self.assertEqual(self.backend("a").state, "absent")
        self.end()
        self.build()
        self.first.done()
        self.nodes.needs["other"] = {VRAM: 16}
        self.nodes.taken = {"other": {"node1": 1}}
        self.pend()
        self.wait(30)
        self.assertEqual(self.backend("a").state, "ready")

    def test_a_manager_that_is_away(self) -> None:
        """It is asked again, and nothing is done meanwhile."""
        self.first.done()
        self.nodes.away = True
        self.pend()
        self.wait(10)
        self.assertEqual(self.backend("a").state, "ready")
        self.assertGreater(self.nodes.asked, 3)
        self.nodes.away = False
        self.wait(2)
        self.assertEqual(self.backend("a").state, "absent")

    def test_while_another_process_decides(self) -> None:
        """In the middle of an upgrade nobody leaves."""
        self.first.done()
        self.pend()
        self.fleet.scheduler.frozen = True
        self.wait(10)
        self.assertEqual((self.backend("a").state, self.nodes.asked), ("ready", 0))
        self.fleet.scheduler.thaw()

    def test_another_process_decides_meanwhile(self) -> None:
        """Nobody leaves by what was asked before an upgrade began."""
        self.first.done()
        self.pend()
        asked: Deferred[Reservations] = Deferred()
        found: Any = self.successResultOf(self.cluster.reservations())
        self.patch(self.cluster, "reservations", lambda: asked)
        self.wait(AFTER + 1)
        self.fleet.scheduler.frozen = True
        asked.callback(found)
        self.assertEqual(self.backend("a").state, "ready")
        self.fleet.scheduler.thaw()
