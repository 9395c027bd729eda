"""What a proxy writes down for others of its use of a service, and when."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.interface import RuntimeUnavailable
from llmproxy.runtimes.swarm import NOTE_AGAIN, SwarmRuntime
from llmproxy.runtimes.swarm_labels import NOTE_EVERY

SPEC = BackendSpec("m", runtime="swarm", service="m", port=8000)


class Manager:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Deferred[Any]] = []

    def call(self, job: object) -> Deferred[Any]:
        self.calls.append(Deferred())
        return self.calls[-1]


class NoteTests(SynchronousTestCase):
    """One service that is used all the time."""

    def setUp(self) -> None:
        self.clock = Clock()
        reactor: Any = self.clock
        self.runtime = SwarmRuntime(reactor, DockerSettings())
        self.manager = Manager()
        manager: Any = self.manager
        self.runtime._manager = self.runtime._starts._manager = manager

    def uses(self, seconds: float = 0.0) -> int:
        """How many notes there have been by then."""
        self.clock.advance(seconds)
        self.runtime.note_use(SPEC, 1)
        return len(self.manager.calls)

    def test_seldom(self) -> None:
        """It is said at once, and then every half minute."""
        self.assertEqual([self.uses(), self.uses()], [1, 1])
        self.manager.calls[0].callback(None)
        self.assertEqual([self.uses(NOTE_EVERY - 1), self.uses(1)], [1, 2])

    def test_one_that_was_not_written_down(self) -> None:
        """It is said again soon: others would take it for idle within another half minute."""
        self.uses()
        self.manager.calls[0].errback(Failure(RuntimeUnavailable("no quorum")))
        self.assertEqual([self.uses(), self.uses(NOTE_AGAIN - 1), self.uses(1)], [1, 1, 2])

    def test_a_run_of_its_own(self) -> None:
        """Of what is started anew it is said at once: the last note may have come to a service that had been
        put out."""
        self.uses()
        self.manager.calls[0].callback(None)
        self.runtime.ensure_started(SPEC).addErrback(lambda _: None)
        self.assertEqual([self.uses(), self.uses()], [3, 3])
