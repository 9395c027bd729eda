"""The reactor's time goes on when the time of day makes a step."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

if not hasattr(select, "epoll"):
    pytest.skip("this system has no epoll", allow_module_level=True)

from llmproxy.reactors import steady
from llmproxy.reactors.epoll import LeanEPollReactor
from llmproxy.reactors.steady import STEP


class Stepped(LeanEPollReactor):
    """A reactor whose clocks a test sets.

    :ivar day: the time of day; ``up``: the monotonic clock.
    """

    day, up = 1_000_000.0, 50.0

    def go_on(self, seconds: float, step: float = 0.0) -> None:
        """Time goes on, and the time of day makes a step besides."""
        self.up += seconds
        self.day += seconds + step
        self.doPoll(0)
        self.runUntilCurrent()


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stepped]:
    """One that is not installed, its descriptors closed at the end."""
    known: list[Stepped] = []  # it reads the clocks before it is there
    monkeypatch.setattr(steady, "time", lambda: known[0].day if known else Stepped.day)
    monkeypatch.setattr(steady, "monotonic", lambda: known[0].up if known else Stepped.up)
    made: Any = Stepped()
    known.append(made)
    yield made
    for reader in made.removeAll():
        reader.connectionLost(Failure(ConnectionDone()))
    made._poller.close()
    if made.waker is not None:
        made.waker.connectionLost(None)


def fired(reactor: Stepped, *seconds: float) -> list[float]:
    """Set timers; those that have fired, as they do."""
    found: list[float] = []
    for each in seconds:
        reactor.callLater(each, found.append, each)
    return found


def test_it_is_the_time_of_day(reactor: Stepped) -> None:
    """While nobody sets the clock, the two are the same."""
    reactor.go_on(100)
    assert reactor.seconds() == reactor.day


def test_a_step_back_delays_nothing(reactor: Stepped) -> None:
    """Timers fire after their seconds, and no time is told that is before another one that was told."""
    found, before = fired(reactor, 5, 20), reactor.seconds()
    reactor.go_on(1, step=-86_400)
    assert reactor.seconds() == before + 1
    reactor.go_on(5)
    assert found == [5]
    found += fired(reactor, 3)
    reactor.go_on(4)
    reactor.go_on(11)
    assert found == [5, 20]
    assert reactor.getDelayedCalls() == []


@pytest.mark.parametrize("when", ["new", "known"])
def test_a_step_forward_hurries_nothing(reactor: Stepped, when: str) -> None:
    """It is followed, and what was to be in five seconds is in five seconds."""
    found = fired(reactor, 20, 5)
    if when == "known":  # they have come into the reactor's own order
        reactor.go_on(0)
    reactor.go_on(1, step=86_400)
    assert (found, reactor.seconds()) == ([], reactor.day)
    reactor.go_on(5)
    assert found == [5]
    reactor.go_on(15)
    assert found == [5, 20]


def test_small_corrections_are_no_steps(reactor: Stepped) -> None:
    """What a time server corrects is not followed until it has come to something."""
    reactor.go_on(1, step=STEP / 2)
    assert reactor.seconds() == 1_000_001
    reactor.go_on(1, step=STEP)
    assert reactor.seconds() == reactor.day
