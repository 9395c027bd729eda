"""vLLM's sleep mode: asleep, awake, and on the way.

What one asks for waits until what was asked for before is done, as in vLLM's engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from llmproxy.demo.faults import Armed
from llmproxy.demo.ledger import GIB, GpuError
from llmproxy.demo.memory import TAGS, Memory

__all__ = ["EngineDead", "Power", "Times", "Work"]


class EngineDead(Exception):
    """The engine failed under what it was asked for."""


class Work(Protocol):
    """The requests that a sleep touches."""

    def cut(self) -> None:
        """End all that run, with what they have said so far."""

    def drained(self) -> Deferred[None]:
        """Fires when none runs any more."""

    def freeze(self) -> None:
        """Let all that run stand still."""

    def resume(self, garble: bool) -> None:
        """Go on with those that stand still and those that came meanwhile.

        :param garble: what is still to come of them is garbage.
        """

    def die(self) -> None:
        """The engine is dead: break off all requests, and end the process soon."""


class Times(Protocol):
    """How long things take, in seconds; and what they do."""

    @property
    def sleep_seconds(self) -> float: ...
    @property
    def wake_seconds(self) -> float: ...
    @property
    def enable_sleep_mode(self) -> bool: ...


@define
class Power:
    """Whether the server sleeps.

    :ivar paused: requests are taken and not run: it sleeps, or is about to.
    :ivar away: what sleeps, of :data:`TAGS`; empty at level 0.
    :ivar level: of the sleep that it is in or was in last.
    :ivar spoilt: the weights are gone since a sleep at level 2, and were not loaded again.
    :ivar armed: the faults to come.
    """

    _reactor: IReactorTime
    _times: Times
    _work: Work
    _memory: Memory
    _say: Callable[[str], object]
    armed: Armed = field(factory=Armed)
    paused: bool = field(init=False, default=False)
    away: frozenset[str] = field(init=False, default=frozenset())
    level: int = field(init=False, default=0)
    spoilt: bool = field(init=False, default=False)
    _dead: bool = field(init=False, default=False)
    _turn: DeferredLock = field(init=False, factory=DeferredLock)
    _engine: DeferredLock = field(init=False, factory=DeferredLock)  # held while it cannot even be asked

    def sleep(self, level: int, mode: str) -> Deferred[None]:
        """Fall asleep; fires when it sleeps.

        :param mode: what becomes of running requests: ``abort``, ``wait`` or ``keep``.
        :raises EngineDead: (the Deferred's) it did not work.
        """
        return self._turn.run(lambda: Deferred.fromCoroutine(self._sleep(level, mode)))

    def wake(self, tags: Collection[str] | None) -> Deferred[bool]:
        """Wake; tells whether all is awake.

        :param tags: what to wake; ``None``: everything.
        :raises EngineDead: (the Deferred's) it did not work.
        """
        return self._turn.run(lambda: Deferred.fromCoroutine(self._wake(tags)))

    def is_sleeping(self) -> Deferred[bool]:
        """Whether it sleeps, once the engine can say so."""
        return self._engine.run(lambda: self.paused)

    def reload_weights(self) -> None:
        """Load the weights from where they came.

        :raises EngineDead: there is no memory for them.
        """
        if "weights" in self.away:
            raise EngineDead("RuntimeError: CUDA error: an illegal memory access was encountered")
        self.spoilt = False
        self._say("Reloading weights inplace...")

    def _check(self) -> None:
        if self._dead:
            raise EngineDead

    async def _sleep(self, level: int, mode: str) -> None:
        self._check()
        if self.away or (self.paused and level == 0):
            self._say("WARNING Executor is already sleeping.")
            return
        was_paused, self.paused = self.paused, True
        match mode:
            case "wait" if not was_paused:  # those that stand still would be waited for without end
                await self._work.drained()
            case "keep" | "wait":
                self._work.freeze()
            case _:
                self._work.cut()
        await self._engine.run(lambda: Deferred.fromCoroutine(self._put_away(level)))

    async def _put_away(self, level: int) -> None:
        if self.armed.take("sleep-hang"):
            await Deferred[None]()
        began = self._reactor.seconds()
        if level:
            await deferLater(self._reactor, self._times.sleep_seconds)
        if self.armed.take("sleep-500"):
            self.paused = False
            self._work.resume(self.spoilt)
            raise EngineDead("RuntimeError: sleep: this fault was asked for")
        self.level = level
        if not level:
            return
        self.away = TAGS
        self.spoilt = self.spoilt or level == 2
        if not self._times.enable_sleep_mode:
            self._say("WARNING sleep mode is not enabled, ignore it.")
        elif not self.armed.take("sleep-leak"):
            freed, used = self._memory.sleep()
            self._say(
                f"Sleep mode freed {freed / GIB:.2f} GiB memory, {used / GIB:.2f} GiB memory is still in use."
            )
        self._say(f"It took {self._reactor.seconds() - began:.6f} seconds to fall asleep.")

    async def _wake(self, tags: Collection[str] | None) -> bool:
        self._check()
        if not self.paused:
            self._say("WARNING Executor is not sleeping.")
            return True
        if tags is not None and not TAGS | {"scheduling"} >= set(tags):
            self._say(f"WARNING Some of {sorted(tags)} are not known; sleeping are {sorted(self.away)}.")
        if self.away:
            back = self.away if tags is None else self.away & set(tags)
            if back:
                await self._engine.run(lambda: Deferred.fromCoroutine(self._bring_back(back)))
            all_is_back = not self.away
        else:
            all_is_back = tags is None or "scheduling" in tags
        if all_is_back:
            self.paused = False
            self._work.resume(self.spoilt)
        return all_is_back

    async def _bring_back(self, tags: frozenset[str]) -> None:
        if self.armed.take("wake-500"):
            raise EngineDead("RuntimeError: wake_up: this fault was asked for")
        began = self._reactor.seconds()
        try:
            self._memory.wake(self.away - tags)
        except GpuError as wrong:
            self._say(f"ERROR {wrong}")
            self._dead = True
            self._work.die()
            raise EngineDead(str(wrong)) from wrong
        if self.armed.take("wake-hang"):
            await Deferred[None]()
        await deferLater(self._reactor, self._times.wake_seconds)
        self.away -= tags
        self._say(f"It took {self._reactor.seconds() - began:.6f} seconds to wake up tags {sorted(tags)!r}.")
