"""What is waited for, and tried, while nobody knows whether a backend runs."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["DOUBT_MOST", "STOP_AGAIN", "Doubt"]

DOUBT_MOST = 60.0
"""Seconds for which the claim of a start or a stop is kept whose outcome nobody knows: an engine that was
restarted is back by then, and with a machine that is lost its GPU is, too."""

STOP_AGAIN = 5.0
"""Seconds between tries to end what is configured no more."""


class Doubt:
    """A runtime did not answer to a start, which it may have carried out all the same, or to a stop, which it
    may not have carried out.

    :param over: called when the doubt is over: with True when the runtime has said how it is, and with False
        when that has been waited for long enough.
    :ivar there: nobody knows how it is.
    :ivar ending: it has been asked to end once more, and has not answered.
    """

    def __init__(self, clock: IReactorTime, over: Callable[[bool], None]) -> None:
        self._clock = clock
        self._told_over = over
        self._limit: IDelayedCall | None = None
        self._next: IDelayedCall | None = None
        self._pause = 0.0
        self._waiting: list[Deferred[None]] = []
        self.there = False
        self.ending = False

    def begin(self) -> None:
        """From now on, for :data:`DOUBT_MOST`."""
        self.there = True
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self._clock.callLater(DOUBT_MOST, self._expired)

    def _expired(self) -> None:
        self._limit = None
        if not self.ending:
            self._end(known=False)

    def over(self) -> None:
        """It is known; while it is being ended, by the answer to that only, which may be that it runs on."""
        if self.there and not self.ending:
            self._end(known=True)

    def _end(self, *, known: bool) -> None:
        self.there, self._pause = False, 0.0
        for timer in (self._limit, self._next):
            if timer is not None:
                timer.cancel()
        self._limit = self._next = None
        self._told_over(known)
        self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def news(self) -> Deferred[None]:
        """Fires when it is over, or when what was asked once more is answered; cancelled by :meth:`close`."""
        each: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(each)
        return each

    def end_it(self, end: Callable[[], None]) -> None:
        """It runs, and shall not: call that, at once the first time.  :meth:`answered` has to follow."""
        if self._next is None and not self.ending:
            self._next = self._clock.callLater(self._pause, self._try, end)

    def _try(self, end: Callable[[], None]) -> None:
        self._next, self._pause = None, STOP_AGAIN
        self.ending = True
        end()

    def answered(self, *, ended: bool) -> None:
        """The runtime has ended it, or cannot say."""
        if not self.there:
            return
        self.ending = False
        if ended or self._limit is None:
            self._end(known=ended)
        else:
            self._tell()

    def close(self) -> None:
        """Wait for nothing any more."""
        for each in list(self._waiting):
            each.cancel()
        self.ending = False
        self.over()
