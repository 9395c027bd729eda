"""Asking for a backend's health."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.probe import ANSWER_LIMIT, probe_once
from llmproxy.runtimes.interface import Address
from tests.inmemory import Servers

ADDRESS = Address("10.0.0.9", 8000, "network")


class QuestionTests(SynchronousTestCase):
    """One question to an address where nothing answers, not even with a refusal: its node has gone."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.servers = Servers(mode="slow_connect")
        self.asked = probe_once(self.clock, self.servers.connect, ADDRESS, "/health")

    def test_a_connection_that_never_comes_is_silence(self) -> None:
        """A refusal would say that nobody listens there; this says nothing."""
        self.clock.advance(ANSWER_LIMIT)
        self.assertEqual(self.successResultOf(self.asked), "silent")

    def test_a_question_that_is_given_up_has_no_answer(self) -> None:
        """Whoever gives it up must not take that for a refusal, and break off what goes on there."""
        self.asked.cancel()
        self.failureResultOf(self.asked, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
