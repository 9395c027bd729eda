"""The timers of one lifecycle, by name."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llmproxy.backend.lifecycle import Timer

__all__ = ["Timers"]


class Timers:
    """Named timers over the reactor's ``callLater``.

    :param fired: called with the name of a timer whose time has come.
    """

    def __init__(self, clock: IReactorTime, fired: Callable[[Timer], None]) -> None:
        self._clock = clock
        self._fired = fired
        self._calls: dict[Timer, IDelayedCall] = {}

    def arm(self, timer: Timer, seconds: float) -> None:
        """Set it, again if it runs."""
        self.disarm(timer)
        self._calls[timer] = self._clock.callLater(seconds, self._due, timer)

    def disarm(self, timer: Timer) -> None:
        """Forget it."""
        call = self._calls.pop(timer, None)
        if call is not None:
            call.cancel()

    def left(self, timer: Timer) -> float | None:
        """Seconds until it fires; None when it is not set."""
        call = self._calls.get(timer)
        return None if call is None else max(0.0, call.getTime() - self._clock.seconds())

    def close(self) -> None:
        """Forget all."""
        for timer in list(self._calls):
            self.disarm(timer)

    def _due(self, timer: Timer) -> None:
        del self._calls[timer]
        self._fired(timer)
