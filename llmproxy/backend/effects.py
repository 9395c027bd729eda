"""What the state machine of a backend hears and what it has done: its inputs and effects.  Pure."""

from __future__ import annotations

from typing import Literal, Protocol

from attrs import frozen

__all__ = ["Effects", "Inputs", "StartFailure", "State", "Timer"]

State = Literal[
    "absent",
    "starting",
    "ready",
    "draining",
    "stopping",
    "failed",
    "falling_asleep",
    "sleeping",
    "waking",
]
Timer = Literal["start", "idle", "drain", "cool_down", "sleep_idle"]


@frozen
class StartFailure:
    """Why a start came to nothing.

    :ivar kind: ``failed``, ``timeout`` (health did not come), ``unavailable`` (the runtime does not answer;
        says nothing about the backend, so there is no cool-down) or ``stopped`` (somebody stopped it).
    :ivar message: the cause, for a person, secrets removed.
    :ivar log_tail: last lines of the backend's output, secrets removed.
    """

    kind: Literal["failed", "timeout", "unavailable", "stopped"]
    message: str
    hint: str | None = None
    exit_code: int | None = None
    oom: bool = False
    log_tail: str = ""


class Effects(Protocol):
    """What the machine has done to the world.  Nothing here may raise."""

    def launch(self, attempt: int) -> None:
        """Have the runtime start it; answer with ``launched`` or ``start_failed``."""

    def probe(self, attempt: int) -> None:
        """Ask its health path until it answers 200; answer with ``healthy``."""

    def open_gate(self) -> None:
        """Hand over those who wait, and from now on every request at once."""

    def close_gate(self) -> None:
        """Hand over no more requests; end probing."""

    def cut(self, reason: str) -> None:
        """Break off every request in flight: the backend has died, or must go now."""

    def refuse(self, failure: StartFailure) -> None:
        """Refuse all who wait, once."""

    def stop(self, attempt: int) -> None:
        """Have the runtime end it; answer with ``stopped``."""

    def sleep(self, attempt: int, level: int) -> None:
        """Have the engine fall asleep; answer with ``slept`` or ``sleep_failed``."""

    def wake(self, attempt: int) -> None:
        """Have the engine wake; answer with ``woken`` or ``wake_failed``."""

    def arm(self, timer: Timer) -> None:
        """Set this timer to its configured time (again, if it runs)."""

    def disarm(self, timer: Timer) -> None:
        """Forget this timer."""

    def moved(self, old: State, new: State, cause: str) -> None:
        """Tell the world of a transition."""

    def reconsider(self) -> None:
        """It is absent or asleep now: if somebody waits, or it runs after all, say so."""


class Inputs(Protocol):
    def demand(self) -> None:
        """Somebody wants it to run, and there is room for it."""

    def found(self) -> None:
        """It runs already, started by someone else or by an earlier life of this proxy."""

    def launched(self) -> None:
        """The runtime has started it."""

    def healthy(self) -> None:
        """Its health path answered 200."""

    def start_failed(self, failure: StartFailure) -> None:
        """The start came to nothing, and nothing of it is left running."""

    def start_unavailable(self, failure: StartFailure) -> None:
        """The runtime did not answer, so that nothing is known of the start."""

    def start_broken_off(self, failure: StartFailure) -> None:
        """The start is given up, and what runs of it has to go."""

    def died(self, cause: str) -> None:
        """Its run has ended."""

    def sick(self, cause: str) -> None:
        """It runs, but its engine is dead."""

    def leave(self, cause: str) -> None:
        """It shall end now; nothing is in flight, or what is does not count."""

    def drain(self, cause: str) -> None:
        """It takes no more requests, and leaves when the last one in flight has."""

    def doze(self, level: int, cause: str) -> None:
        """It shall fall asleep; nothing is in flight."""

    def slept(self) -> None:
        """It is asleep."""

    def sleep_failed(self, cause: str) -> None:
        """It would not fall asleep, or what it slept on did not come back: nobody knows what it is now."""

    def found_asleep(self) -> None:
        """What was found running is asleep."""

    def woken(self) -> None:
        """It is awake and healthy."""

    def wake_failed(self, cause: str) -> None:
        """It would not wake."""

    def stopped(self) -> None:
        """The runtime has seen its end, or cannot say (then the next news of it counts)."""

    def cooled(self) -> None:
        """The cool-down is over, or was lifted."""
