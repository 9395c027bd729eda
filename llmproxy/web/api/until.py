"""Waiting until something has become of a backend or a lease."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from llmproxy.backend.surroundings import Event
from llmproxy.fleet.fleet import Fleet

__all__ = ["Waiting"]


class Waiting:
    """All who wait at present."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._waiting: set[_Until] = set()

    def until(
        self,
        clock: IReactorTime,
        name: str,
        over: Callable[[], bool],
        closed: Deferred[None] | None = None,
    ) -> Deferred[None]:
        """Fire when ``over()`` is true, which is asked now, after each event of ``name``, and when told to.

        An event is told in the middle of a step of the lifecycle, when the cause of a failure, say, has not
        been noted yet, and what is wanted of the backend then has to wait for the end of that step.  So it is
        asked when that step is over.

        :param closed: when this ends, the waiting fails.
        """
        one = _Until(clock, self._fleet, name, over, self._waiting.discard)
        self._waiting.add(one)
        return one.begin(closed)

    def look(self, name: str) -> None:
        """The operator has done something to it: who waits may wait for what is wanted no more, and a wish
        that is withdrawn is no event."""
        for one in self._waiting:
            if one.name == name:
                one.soon()


class _Until:
    def __init__(
        self,
        clock: IReactorTime,
        fleet: Fleet,
        name: str,
        over: Callable[[], bool],
        ended: Callable[[_Until], None],
    ) -> None:
        self.name = name
        self._clock = clock
        self._tell_ended = ended
        self._over = over
        self._call: IDelayedCall | None = None
        self._done: Deferred[None] = Deferred(lambda _: self._end())
        self._unfollow = fleet.follow(self._heard)
        self._closed: Deferred[None] | None = None
        self._ended = False

    def begin(self, closed: Deferred[None] | None) -> Deferred[None]:
        self._closed = closed
        if closed is not None:
            closed.addBoth(self._has_closed)
        self.soon()
        return self._done

    def _heard(self, event: Event) -> None:
        if event.backend == self.name:
            self.soon()

    def soon(self) -> None:
        """Ask when what happens at present is over."""
        if self._call is None:
            self._call = self._clock.callLater(0, self._look)

    def _look(self) -> None:
        self._call = None
        if self._over():
            self._end()
            self._done.callback(None)

    def _has_closed(self, _: object) -> None:
        if not self._ended:
            self._end()
            self._done.errback(Failure(CancelledError()))

    def _end(self) -> None:
        self._ended = True
        self._tell_ended(self)
        self._unfollow()
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._closed is not None:
            self._closed.cancel()
