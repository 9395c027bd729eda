"""What is wanted of one backend beside requests, and who follows its states.  Pure."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred, succeed

from llmproxy.backend.effects import State
from llmproxy.errors import Refusal

__all__ = ["Wishes", "Witnesses"]


@define
class Wishes:
    """What the operator and the scheduler want of a backend.

    :ivar run_since: since when it shall run without a request (reactor seconds); None: it need not.
    :ivar stop: why it shall end as soon as it may; None: it need not.
    :ivar sleep: why it shall fall asleep as soon as it may.
    :ivar leaves_as: how it leaves when it has drained: ``stop``, or a level of sleep.
    :ivar cause: why it leaves, while it drains.
    :ivar swapped_in: somebody else had to leave for it.
    :ivar unfit: why it was not started the last time it was wanted: there was no room, or nobody to start it.
    """

    run_since: float | None = None
    stop: str | None = None
    sleep: str | None = None
    leaves_as: str = ""
    cause: str = ""
    swapped_in: bool = False
    unfit: Refusal | None = None

    @property
    def any(self) -> bool:
        """Something is wanted that has not been done."""
        return self.run_since is not None or self.stop is not None or self.sleep is not None

    def moved(self, old: State, new: State) -> None:
        """What is done is wanted no more."""
        if new == "ready":
            self.leaves_as = ""
        elif old == "ready":
            self.swapped_in, self.sleep = False, None
        if new in ("starting", "waking", "failed"):
            self.run_since = None
        if new in ("starting", "waking"):
            self.unfit = None
        if new not in ("ready", "draining", "sleeping"):
            self.stop = None


@define
class Witnesses:
    """Those who wait for a backend to be in some state."""

    _waiting: list[tuple[frozenset[State], Deferred[None]]] = field(factory=list)

    def when(self, now: State, states: tuple[State, ...]) -> Deferred[None]:
        """Fire when it is in one of these; cancelling gives up waiting."""
        if now in states:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append((frozenset(states), waiting))
        return waiting

    def _forget(self, gone: Deferred[None]) -> None:
        self._waiting = [entry for entry in self._waiting if entry[1] is not gone]

    def tell(self, state: State) -> None:
        """It is in this one now."""
        told = [waiting for states, waiting in self._waiting if state in states]
        self._waiting = [entry for entry in self._waiting if state not in entry[0]]
        for waiting in told:
            waiting.callback(None)

    def dismiss(self) -> None:
        """There will be no news any more."""
        waiting, self._waiting = self._waiting, []
        for _, one in waiting:
            one.cancel()
