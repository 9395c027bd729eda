"""One backend: when something is due of it, and what happens then."""

from __future__ import annotations

from llmproxy.backend.lifecycle import Timer, cool_down
from llmproxy.backend.lingering import Lingering
from llmproxy.backend.makeup import Makeup
from llmproxy.backend.probe import ANSWER_LIMIT
from llmproxy.backend.serving import Serving
from llmproxy.backend.timers import Timers
from llmproxy.scheduling.replicas import OTHERS_SEEN

__all__ = ["Timed"]

LAST_LOOK = 2 * ANSWER_LIMIT
"""Seconds in which a backend that was asked seldom may still answer when its time to start is over."""

IDLE_AGAIN = 1.0
"""Seconds after which a backend that is due to leave, and may not yet, is looked at again."""


class Timed(Makeup):
    """Sets the timers that its lifecycle asks for; :mod:`llmproxy.backend.conduct` has the rest."""

    _timers: Timers
    _lingering: Lingering
    _serving: Serving
    _closing: bool
    _abandoned: bool

    def _start_overdue(self) -> None:
        """Its time to start is over."""
        raise NotImplementedError

    def arm(self, timer: Timer) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        seconds: float | None
        if timer == "idle":
            seconds = self._idle_left()
        elif timer == "start":
            seconds = self.spec.start_timeout
        elif timer == "drain":
            around = self.surroundings
            # One that is configured anew finishes what it has, however long that takes within reason.
            asked = self.wishes.stop is not None and not self._closing
            seconds = around.drain if asked else around.drain_limit
        elif timer == "sleep_idle":
            seconds = None if self.spec.pinned else self.spec.sleep_idle or None
        else:
            # None where they were forgiven while it was being stopped.
            seconds = cool_down(self.lifecycle.failures) if self.lifecycle.failures else 0.0
        if seconds is None:
            self._timers.disarm(timer)
        else:
            self._timers.arm(timer, seconds)

    def disarm(self, timer: Timer) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        self._timers.disarm(timer)

    def _fired(self, timer: Timer) -> None:
        if timer == "idle":
            # It is not moved with each request; when it turns out to be early it is armed again.
            if self.due:
                self.surroundings.scheduler.look(self)
            left = self._idle_left()
            if self.state == "ready" and left is not None:
                self._timers.arm(timer, left or IDLE_AGAIN)
        elif timer == "sleep_idle":
            self.surroundings.scheduler.look(self)
            if self.state == "sleeping":
                self._timers.arm(timer, IDLE_AGAIN)
        elif timer == "start" and self._serving.patient:
            # It may have become healthy since it was last asked.
            self.hurry()
            self._timers.arm("start", LAST_LOOK)
        elif timer == "start":
            self._start_overdue()
        elif timer == "drain":
            self.lifecycle.drain_overdue()
        else:
            self.lifecycle.cooled()

    def hurry(self) -> None:
        """Somebody wants to know whether it is ready: if that is not known, ask at once."""
        self._serving.hurry()

    @property
    def due(self) -> bool:
        """It has been idle for so long that it shall leave."""
        now = self.surroundings.clock.seconds()
        if self.state == "sleeping":
            return 0 < self.spec.sleep_idle <= now - self.since
        left = self._idle_left()
        idle = left is not None and left <= 0
        return self.state == "ready" and not self.gate.busy and (idle or self.wishes.sleep is not None)

    @property
    def _idle_limit(self) -> float:
        limit = self._lingering.limit(self.gate.used_at, self.spec.idle)
        if self._present.there is not None and self._present.there.used_at is not None:
            # Another proxy uses it too, and says so only now and then.
            limit = max(limit, OTHERS_SEEN)
        return min(limit, self.spec.abandon_idle) if self._abandoned and self.gate.unused else limit

    @property
    def idle_in(self) -> float | None:
        """Seconds until it is reaped if no request comes; None when it is not going to be."""
        return self._idle_left() if self.state == "ready" and not self.gate.busy else None

    def _idle_left(self) -> float | None:
        if self.spec.idle <= 0 or self.spec.pinned:
            return None
        if self.gate.busy:
            # The clock starts when the last answer has ended, which is later than now.
            return self._idle_limit
        ends = max(self.gate.used_at + self._idle_limit, self._lingering.until)
        return max(0.0, ends - self.surroundings.clock.seconds())

    @property
    def retry_in(self) -> float | None:
        """Seconds until it may be started again after a failed start; None when it may now."""
        return self._timers.left("cool_down")
