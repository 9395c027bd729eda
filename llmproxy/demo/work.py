"""The demo server's requests: those that run, those that wait for it to wake, and the count of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llmproxy.demo.generation import Generation

__all__ = ["Requests", "Stats"]

_DEATH = 0.5
"""Seconds from the engine's death to the process's end: vLLM takes some, and answers 503 meanwhile."""


@define
class Stats:
    """What was asked of the server since it started."""

    requests: int = 0
    running: int = 0
    held: int = 0
    finished: int = 0
    aborted: int = 0
    starts: int = 1
    paths: Counter[str] = field(factory=Counter)


@define(eq=False)
class Requests:
    """All generations; their owner, and what sleep mode acts upon.

    :ivar held: those that came while the server slept, in order.
    :ivar dead: the engine is: the process ends soon.
    """

    reactor: IReactorTime
    _exit: Callable[[int], object]
    stats: Stats
    running: set[Generation] = field(init=False, factory=set)
    held: dict[Generation, None] = field(init=False, factory=dict)
    dead: bool = field(init=False, default=False)
    _drained: list[Deferred[None]] = field(init=False, factory=list)

    def begin(self, generation: Generation, *, hold: bool, hang: bool) -> None:
        """Run it, or let it wait for :meth:`resume`."""
        if hold:
            self.held[generation] = None
            generation.freeze()
        else:
            self.running.add(generation)
        self._count()
        generation.start(hang=hang)

    # What a generation needs of its owner.

    def ended(self, generation: Generation, aborted: bool) -> None:
        self.held.pop(generation, None)
        self.running.discard(generation)
        self._count()
        if aborted:
            self.stats.aborted += 1
        else:
            self.stats.finished += 1
        if not self.running:
            waiting, self._drained = self._drained, []
            for deferred in waiting:
                deferred.callback(None)

    def exit(self, status: int) -> None:
        self._exit(status)

    def _count(self) -> None:
        self.stats.running, self.stats.held = len(self.running), len(self.held)

    # What sleep mode needs.

    def cut(self) -> None:
        for generation in list(self.running):
            generation.cut()

    def drained(self) -> Deferred[None]:
        over: Deferred[None] = Deferred()
        if self.running:
            self._drained.append(over)
        else:
            over.callback(None)
        return over

    def freeze(self) -> None:
        for generation in self.running:
            generation.freeze()

    def resume(self, garble: bool) -> None:
        self.running.update(self.held)
        self.held.clear()
        self._count()
        for generation in list(self.running):
            generation.thaw(garble=garble)

    def die(self) -> None:
        self.dead = True
        for generation in [*self.running, *self.held]:
            generation.break_off()
        self.reactor.callLater(
            _DEATH, self._exit, 0
        )  # the status with which vLLM ends when its engine has died
