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
    :ivar ending: it has been asked to end once more, and has not answered.
    """

    def __init__(self, clock: IReactorTime, over: Callable[[bool], None]) -> None:
        self._clock = clock
        self._told_over = over
        self._limit: IDelayedCall | None = None
        self._again: IDelayedCall | None = None
        self._pause = 0.0
        self._waiting: list[Deferred[None]] = []
        self.ending = False

    @property
    def there(self) -> bool:
        """Nobody knows."""
        return self._limit is not None

    def begin(self) -> None:
        """From now on, for :data:`DOUBT_MOST`."""
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self._clock.callLater(DOUBT_MOST, self._expired)

    def _expired(self) -> None:
        self._limit = None
        if self.ending:
            # That will be answered.
            self.begin()
        else:
            self._end(known=False)

    def over(self) -> None:
        """It is known."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
            self._end(known=True)

    def _end(self, *, known: bool) -> None:
        self._pause = 0.0
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._told_over(known)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def sure(self) -> Deferred[None]:
        """Fires when it is over; cancelled by :meth:`close`."""
        each: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(each)
        return each

    def stop_again(self, stop: Callable[[], None]) -> None:
        """It runs: call that, at once the first time; and :meth:`answered` when it has come to something."""
        if self._again is None and not self.ending:
            self._again = self._clock.callLater(self._pause, self._stop, stop)

    def _stop(self, stop: Callable[[], None]) -> None:
        self._again, self._pause = None, STOP_AGAIN
        self.ending = True
        stop()

    def answered(self) -> None:
        """What was asked once more has come to something."""
        self.ending = False

    def close(self) -> None:
        """Wait for nothing any more."""
        for each in list(self._waiting):
            each.cancel()
        self.over()
