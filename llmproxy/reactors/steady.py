"""The reactor's time, when the time of day makes a step.

Twisted's reactors take the time of day for all timers: set back by an hour, every timer waits an hour longer,
and set forward, all are due at once.  Virtual machines do so when they go on after a sleep, WSL's among them,
and so does any machine whose clock was wrong when it was started.

Here, time goes on at the pace of the machine's monotonic clock, and is still POSIX time: it begins as the
time of day, follows it where that is set forward, with every timer moved along, and never goes back.
"""

from __future__ import annotations

from time import monotonic, time
from typing import Any

__all__ = ["STEP", "SteadyTime"]

STEP = 1.0
"""Seconds that the time of day has to be ahead to be followed.  Less is what time servers correct all the
time, and is no step."""


class SteadyTime:
    """For a reactor of Twisted's, which it has to stand before.

    :ivar ahead: seconds that POSIX time is ahead of the monotonic clock.
    """

    ahead: float

    # Twisted's own, of which it says nothing to type checkers.
    _pendingTimedCalls: list[Any]
    _newTimedCalls: list[Any]

    def __init__(self, *arguments: Any) -> None:
        self.ahead = time() - monotonic()
        super().__init__(*arguments)

    def seconds(self) -> float:
        """POSIX seconds that never make a step back."""
        return monotonic() + self.ahead

    def follow(self) -> None:
        """Look whether the time of day is ahead, and go along.

        No timer depends on it, so that any moment will do in which there is nothing else to do.
        """
        ahead = time() - monotonic()
        step = ahead - self.ahead
        if step > STEP:
            self.ahead = ahead
            # All by the same: they stay in order.
            for call in (*self._pendingTimedCalls, *self._newTimedCalls):
                call.time += step
