"""The lifecycle of one backend, as its surroundings see it: what happens is told here.

:mod:`llmproxy.backend.machine` has the states and every transition.  News of an attempt that is over is
dropped here, so that an old start cannot make a new one ready.
"""

from __future__ import annotations

from llmproxy.backend.effects import Effects, StartFailure, State, Timer
from llmproxy.backend.machine import Core, machine

__all__ = [
    "COOL_DOWN_FIRST",
    "COOL_DOWN_MOST",
    "Effects",
    "Lifecycle",
    "StartFailure",
    "State",
    "Timer",
    "cool_down",
]

COOL_DOWN_FIRST = 5.0
"""Seconds of the first cool-down after a failed start: long enough that a client that retries each second
does not restart a broken model for ever, short enough for a person who has just fixed it."""
COOL_DOWN_MOST = 300.0
"""Seconds that a cool-down grows to; Kubernetes bounds its crash-loop back-off by the same five minutes."""


def cool_down(failures: int) -> float:
    """Seconds to refuse after ``failures`` failed starts in a row (at least 1): doubles from 5 s to 5 min."""
    return float(min(COOL_DOWN_MOST, COOL_DOWN_FIRST * 2 ** min(failures - 1, 10)))


class Lifecycle:
    """The lifecycle of one backend, as its surroundings see it.

    :param effects: carries out what is decided here.
    """

    def __init__(self, effects: Effects) -> None:
        self._core = Core(effects)
        self._inputs = machine(self._core)

    @property
    def state(self) -> State:
        """The state that is shown; the machine itself is told what happens, and not asked."""
        return self._core.state

    @property
    def attempt(self) -> int:
        """Number of the present or last start."""
        return self._core.attempt

    @property
    def failures(self) -> int:
        """Failed starts in a row."""
        return self._core.failures

    def demand(self) -> None:
        """Somebody wants it to run."""
        self._inputs.demand()

    def found(self) -> None:
        """It runs, and not by a start of ours."""
        self._inputs.found()

    def launched(self, attempt: int) -> None:
        """The runtime has started what ``attempt`` asked for."""
        if attempt == self._core.attempt:
            self._inputs.launched()

    def healthy(self, attempt: int) -> None:
        """Its health path answered 200 to the probes of ``attempt``."""
        if attempt == self._core.attempt:
            self._inputs.healthy()

    def start_failed(self, attempt: int, failure: StartFailure) -> None:
        """``attempt`` came to nothing, and nothing of it runs any more."""
        if attempt != self._core.attempt:
            return
        if failure.kind == "unavailable":
            self._inputs.start_unavailable(failure)
        else:
            self._inputs.start_failed(failure)

    def start_overdue(self, attempt: int, failure: StartFailure) -> None:
        """``attempt`` is past its deadline; what runs of it is stopped."""
        if attempt == self._core.attempt:
            self._inputs.start_broken_off(failure)

    def died(self, cause: str) -> None:
        """The run that was known has ended by itself."""
        self._inputs.died(cause)

    def sick(self, cause: str) -> None:
        """The engine of a ready backend was found dead while its container runs."""
        self._inputs.sick(cause)

    def leave(self, cause: str) -> None:
        """It shall end now; what is in flight is broken off."""
        self._inputs.leave(cause)

    def drain(self, cause: str) -> None:
        """It takes no more requests; ``leave`` or ``doze`` follows when nothing is in flight any more."""
        self._inputs.drain(cause)

    def doze(self, level: int, cause: str) -> None:
        """It shall fall asleep, with nothing in flight."""
        self._inputs.doze(level, cause)

    def slept(self, attempt: int) -> None:
        """The engine says that it sleeps."""
        if attempt == self._core.attempt:
            self._inputs.slept()

    def sleep_failed(self, attempt: int, cause: str) -> None:
        """It did not fall asleep as it should."""
        if attempt == self._core.attempt:
            self._inputs.sleep_failed(cause)

    def found_asleep(self, attempt: int) -> None:
        """What was found running is asleep."""
        if attempt == self._core.attempt:
            self._inputs.found_asleep()

    def woken(self, attempt: int) -> None:
        """The engine is awake and healthy."""
        if attempt == self._core.attempt:
            self._inputs.woken()

    def wake_failed(self, attempt: int, cause: str) -> None:
        """It did not wake as it should."""
        if attempt == self._core.attempt:
            self._inputs.wake_failed(cause)

    def drain_overdue(self) -> None:
        """What is in flight has had its time."""
        if self._core.state == "draining":
            self._core.effects.cut("drain limit reached")

    def stopped(self, attempt: int) -> None:
        """The end of what ``attempt`` had started has been seen."""
        if attempt == self._core.attempt:
            self._inputs.stopped()

    def cooled(self) -> None:
        """The cool-down is over, or the operator or a change of the container lifted it."""
        self._inputs.cooled()

    def forgive(self) -> None:
        """Forget earlier failures, so that the next cool-down is short again."""
        self._core.failures = 0
        self._inputs.cooled()
