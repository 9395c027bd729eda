"""A request whose task is lost before its first byte goes on to another one."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.error import ConnectionLost

from llmproxy.config.model import BackendSpec, Replicas
from llmproxy.runtimes.interface import IRuntime
from llmproxy.web.exchange import MOVES
from llmproxy.web.underway import open_requests
from tests.fake_swarm import FakeReplicator, FakeSwarm
from tests.front import FrontCase
from tests.inmemory import Far

MANY = BackendSpec(route="many", runtime="swarm", service="m", models=("model",), replicas=Replicas(0, 4))
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {}\n\n"
ASKED = {"model": "model", "messages": [{"role": "user", "content": "hi"}]}


class Other:
    """Stands for a backend that another process has."""

    name = "many"
    state = "ready"

    def __init__(self) -> None:
        self.entered: list[object] = []

    def enter(self, waiter: object) -> bool:
        self.entered.append(waiter)
        return False


class MovingOnTests(FrontCase):
    """A backend of two tasks, one story each."""

    swarm: FakeSwarm

    def setUp(self) -> None:
        super().setUp()
        self.build((MANY,))
        self.swarm.become_running("many")
        self.swarm.run_task("many")
        self.servers.mode = "healthy"
        self.clock.advance(1)
        self.assertEqual(self.backend("many").state, "ready")

    def runtimes(self) -> dict[str, IRuntime]:
        self.world = self.swarm = FakeSwarm()
        return {"docker": FakeReplicator(self.swarm), "swarm": FakeReplicator(self.swarm)}

    def task(self, far: Far) -> str:
        """The task at the other end."""
        assert far.address is not None
        return f"t{far.address.host.rpartition('.')[2]}"

    def pull(self, times: int) -> None:
        """The task takes the next pieces of a body that is in a file."""
        transport: Any = self.far().transport
        for _ in range(times):
            if transport.producer is not None:
                transport.producer.resumeProducing()

    def test_a_connection_that_breaks(self) -> None:
        """What broke before its first byte is asked of the other task, body and all."""
        client = self.client().post(b"/v1/chat/completions", ASKED)
        first = self.far()
        self.servers.mode = "hang"
        first.close(ConnectionLost())
        second = self.far()
        self.assertEqual({self.task(first), self.task(second)}, {"t1", "t2"})
        self.assertEqual(first.received.partition(b"\r\n\r\n")[2], second.received.partition(b"\r\n\r\n")[2])
        second.send(ANSWER)
        self.assertEqual(client.answer()[0::2], (200, b"ok"))
        self.assertEqual(self.log.entries[-1].outcome, "ok")

    def test_a_task_that_refuses(self) -> None:
        """A task that accepts no connection is left for the other one."""
        self.servers.modes["10.0.0.1"] = "refuse"
        client = self.client().post(b"/v1/chat/completions", ASKED)
        self.assertEqual(self.task(self.far()), "t2")
        self.far().send(ANSWER)
        self.assertEqual(client.answer()[0], 200)
        again = self.client().post(b"/v1/chat/completions", ASKED)
        self.far().send(ANSWER)
        self.assertEqual((self.task(self.far()), again.answer()[0]), ("t2", 200))

    def test_a_task_that_ends(self) -> None:
        """Of what was in flight there, what had no byte goes on, and what had is broken off and told so."""
        silent = self.client().post(b"/v1/chat/completions", ASKED)
        first = self.far()
        stream = self.client().post(b"/v1/chat/completions", {**ASKED, "stream": True})
        streaming = self.far()
        if self.task(streaming) != self.task(first):
            stream.leave()
            # The other one has the lower load now.
            stream = self.client().post(b"/v1/chat/completions", {**ASKED, "stream": True})
            streaming = self.far()
        streaming.send(EVENTS)
        lost = self.task(first)
        self.swarm.end_task("many", lost)
        self.assertNotEqual(self.task(self.far()), lost)
        self.far().send(ANSWER)
        self.assertEqual(silent.answer()[0], 200)
        if self.task(streaming) == lost:
            told = stream.take()
            self.assertIn(b"backend_died", told)
            self.assertFalse(told.endswith(b"0\r\n\r\n"))

    def test_held_for_the_next_one(self) -> None:
        """Where no task is left it is held, and answered by the next one that runs."""
        client = self.client().post(b"/v1/chat/completions", ASKED)
        for task in self.swarm.tasks("many"):
            self.swarm.end_task("many", task)
        self.assertEqual(client.take(), b"")
        self.clock.advance(1)
        self.far().send(ANSWER)
        self.assertEqual((client.answer()[0], self.task(self.far())), (200, "t3"))

    def test_what_it_was_in_flight_for_is_no_wait(self) -> None:
        """One that was in flight for longer than it may be held is held again all the same."""
        self.backend("many").retune(evolve(MANY, max_wait=10.0))
        client = self.client().post(b"/v1/chat/completions", ASKED)
        self.clock.advance(20)
        self.servers.mode = "refuse"
        for task in self.swarm.tasks("many"):
            self.swarm.end_task("many", task)
        self.assertEqual(client.take(), b"")
        ((_, entry),) = open_requests(self.site)
        self.assertFalse(entry.handed)
        self.servers.mode = "healthy"
        self.clock.advance(1)
        self.far().send(ANSWER)
        self.assertEqual(client.answer()[0], 200)
        self.assertLess(self.log.entries[-1].held or 0.0, 5.0)

    def test_a_full_queue(self) -> None:
        """What has been admitted before is not refused for want of places to wait at."""
        self.backend("many").retune(evolve(MANY, max_waiting=1))
        clients = [self.client().post(b"/v1/chat/completions", ASKED) for _ in range(3)]
        self.swarm.hold_starts = True
        for task in self.swarm.tasks("many"):
            self.swarm.end_task("many", task)
        self.assertEqual([client.take() for client in clients], [b""] * 3)
        self.assertEqual(self.client().post(b"/v1/chat/completions", ASKED).error()[0], 429)
        self.swarm.finish_start("many")
        self.clock.advance(1)
        for far in [self.far(-3), self.far(-2), self.far(-1)]:
            far.send(ANSWER)
        self.assertEqual([client.answer()[0] for client in clients], [200] * 3)

    def test_after_the_hand_over(self) -> None:
        """Once another process decides, it is that one which is asked again."""
        client = self.client().post(b"/v1/chat/completions", ASKED)
        first, backend = self.far(), self.backend("many")
        other = Other()
        self.patch(self.fleet, "heir", lambda route: other)
        backend.hand_over()
        first.close(ConnectionLost())
        self.assertEqual((len(other.entered), client.take()), (1, b""))

    def test_a_body_in_a_file(self) -> None:
        """A body that is kept in a file is sent from its beginning again."""
        body = b'{"model": "model", "prompt": "%s"}' % (b"x" * 50_000)
        self.site.room.most_memory = 0
        client = self.client().post(b"/v1/completions", body)
        self.pull(1)
        self.servers.mode = "hang"
        self.far().close(ConnectionLost())
        self.pull(9)
        self.far().send(ANSWER)
        self.assertEqual(client.answer()[0], 200)
        self.assertEqual(self.far().received.partition(b"\r\n\r\n")[2], body)

    def test_not_for_ever(self) -> None:
        """A request of which every task dies is an error at last."""
        client = self.client().post(b"/v1/chat/completions", ASKED)
        for _ in range(MOVES):
            self.far().close(ConnectionLost())
            self.assertEqual(client.take(), b"")
            self.clock.advance(1)
        self.far().close(ConnectionLost())
        status, error, _ = client.error()
        self.assertEqual((status, error["code"]), (502, "backend_unavailable"))
        self.assertEqual(self.log.entries[-1].outcome, "backend_died")

    def test_not_what_only_looks(self) -> None:
        """What does not count as a use goes nowhere else."""
        client = self.client().get(b"/many/version")
        self.far().close(ConnectionLost())
        self.assertEqual(client.error()[0], 502)

    def test_whoever_leaves_meanwhile(self) -> None:
        """A client that hangs up while its request is held again frees its place."""
        client = self.client().post(b"/v1/chat/completions", ASKED)
        for task in self.swarm.tasks("many"):
            self.swarm.end_task("many", task)
        client.leave()
        self.assertEqual(self.backend("many").admission.waiting, 0)
        self.assertEqual(self.site.held, 0)
