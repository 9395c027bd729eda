"""Which containers there are, asked once for many."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.runtimes.docker_census import Census, Containers
from llmproxy.runtimes.interface import RuntimeUnavailable

FOUND = Containers(("3f2a77" * 10, "beef00" * 10), frozenset({"coder3b", "other"}))


class CensusTests(SynchronousTestCase):
    """One census over an engine that answers when the test says so."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[Containers]] = []
        self.census = Census(self.clock, self.ask)

    def ask(self) -> Deferred[Containers]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def test_all_who_ask_in_one_turn_share_one_list(self) -> None:
        """A thousand backends are one question."""
        answers = [self.census.containers() for _ in range(1000)]
        self.clock.advance(0)
        self.asked[0].callback(FOUND)
        self.assertEqual([self.successResultOf(answer) for answer in answers], [FOUND] * 1000)
        self.assertEqual((len(self.asked), self.clock.getDelayedCalls()), (1, []))

    def test_who_asks_during_a_list_gets_the_next_one(self) -> None:
        """Nobody is told how things were before the question."""
        first = self.census.containers()
        self.clock.advance(0)
        second = self.census.containers()
        self.asked[0].callback(Containers())
        self.assertEqual(self.successResultOf(first), Containers())
        self.assertNoResult(second)
        self.asked[1].callback(FOUND)
        self.assertEqual(self.successResultOf(second), FOUND)

    def test_an_engine_that_is_away_is_told_to_all_and_asked_again_later(self) -> None:
        """A failure ends one list and no more."""
        answers = [self.census.containers() for _ in range(2)]
        self.clock.advance(0)
        self.asked[0].errback(RuntimeUnavailable("away"))
        for answer in answers:
            self.failureResultOf(answer, RuntimeUnavailable)
        again = self.census.containers()
        self.clock.advance(0)
        self.asked[1].callback(FOUND)
        self.assertEqual(self.successResultOf(again), FOUND)

    def test_one_that_gives_up_disturbs_nobody(self) -> None:
        """The others get their answer."""
        first, second = self.census.containers(), self.census.containers()
        self.clock.advance(0)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.asked[0].callback(FOUND)
        self.assertEqual(self.successResultOf(second), FOUND)

    def test_an_engine_that_refuses_at_once_is_no_loop(self) -> None:
        """It is asked once for those who asked."""
        census = Census(self.clock, lambda: fail(RuntimeUnavailable("closed")))
        answer = census.containers()
        self.clock.advance(0)
        self.failureResultOf(answer, RuntimeUnavailable)


def test_a_container_is_known_by_its_name_and_its_id() -> None:
    """The id may be as short as docker ps shows it, and no shorter: that would be anybody's."""
    assert all(FOUND.has(name) for name in ("coder3b", "3f2a77" * 2, "3f2a77" * 3))
    assert not any(FOUND.has(name) for name in ("coder", "3f2a77", "f2a", "none"))
