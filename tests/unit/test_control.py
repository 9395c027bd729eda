"""Requests to an engine that no client has made: however they end, that is told once."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.control import LARGEST, Answer, NoAnswer, ask
from llmproxy.engines.sleep import Call
from llmproxy.runtimes.interface import Address
from tests.inmemory import Servers

AT = Address("127.0.0.1", 8000, "process")


class ControlTests(SynchronousTestCase):
    """One question to one engine."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.servers = Servers(mode="healthy")

    def ask(self, body: dict[str, object] | None = None) -> Deferred[Answer]:
        call = Call("POST", "/sleep", body)
        return ask(self.clock, self.servers.connect(AT), AT, call, authorization=b"Bearer k", limit=2)

    def failed(self, asked: Deferred[Answer]) -> str:
        """Why there was no answer; nothing is left that could say it again."""
        why = str(self.failureResultOf(asked, NoAnswer).value)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return why

    def test_an_answer(self) -> None:
        """Its status and its body, and the connection is closed."""
        asked = self.ask()
        (far,) = self.servers.requests
        head = far.received
        self.assertIn(b"Authorization: Bearer k\r\n", head)
        self.assertIn(b"Content-Length: 0\r\n", head)
        far.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self.assertEqual(self.successResultOf(asked), (200, b"ok"))
        self.assertEqual((far.closed, self.clock.getDelayedCalls()), (True, []))

    def test_a_body_is_json(self) -> None:
        """It is sent with its length and its type."""
        self.ask({"level": 1})
        received = self.servers.requests[0].received
        self.assertIn(b"Content-Type: application/json\r\n", received)
        self.assertIn(b"Content-Length: 12\r\n", received)
        self.assertTrue(received.endswith(b'\r\n\r\n{"level": 1}'))

    def test_nobody_listens(self) -> None:
        """That it does not accept connections is told."""
        self.servers.mode = "refuse"
        self.assertIn("does not accept connections", self.failed(self.ask()))

    def test_an_engine_that_does_not_take_the_connection_in_time(self) -> None:
        """The limit counts from the beginning, and what still connects is given up."""
        self.servers.mode = "slow_connect"
        asked = self.ask()
        self.clock.advance(2)
        self.failed(asked)
        self.assertEqual(len(self.servers.pending), 1)
        self.assertTrue(self.servers.pending[0].called)

    def test_an_engine_that_does_not_answer_in_time(self) -> None:
        """It is not waited for any longer."""
        asked = self.ask()
        self.clock.advance(1.9)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        self.assertIn("no answer within 2 s", self.failed(asked))
        self.assertTrue(self.servers.requests[0].closed)

    def test_a_connection_that_breaks(self) -> None:
        """It is no answer, however much of one has come."""
        asked = self.ask()
        self.servers.requests[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        self.servers.requests[0].close()
        self.assertIn("in the middle of its answer", self.failed(asked))

    def test_of_a_long_answer_not_all_is_kept(self) -> None:
        """An engine that says much does not fill the proxy's memory."""
        asked = self.ask()
        far = self.servers.requests[0]
        far.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * LARGEST))
        for _ in range(4):
            far.send(b"x" * LARGEST)
        status, body = self.successResultOf(asked)
        self.assertEqual((status, len(body)), (200, LARGEST))

    def test_who_does_not_wait_any_more(self) -> None:
        """A question that is taken back closes its connection, or gives up what still connects."""
        for mode in ("healthy", "slow_connect"):
            self.servers.mode = mode
            asked = self.ask()
            asked.cancel()
            self.failureResultOf(asked, CancelledError)
            self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(self.servers.requests[0].closed)
        self.assertTrue(self.servers.pending[0].called)
