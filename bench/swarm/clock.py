"""Time that takes no time, and who used the processor meanwhile."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from itertools import count
from time import thread_time_ns
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

__all__ = ["Account", "HeapClock", "ProxyClock"]

T = TypeVar("T")


class HeapClock(Clock):
    """Twisted's clock for tests, with its calls in a heap, as the reactor has them: sorting all of them for
    each one that comes would be most of what is measured."""

    def __init__(self, now: float = 0.0) -> None:
        super().__init__()
        self.rightNow = now
        self._heap: list[tuple[float, int, DelayedCall]] = []
        self._numbers = count()

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        call = DelayedCall(
            self.rightNow + delay, callable, args, kw, lambda _: None, self._push, lambda: self.rightNow
        )
        self._push(call)
        return call

    def _push(self, call: DelayedCall) -> None:
        heapq.heappush(self._heap, (call.getTime(), next(self._numbers), call))

    def getDelayedCalls(self) -> list[IDelayedCall]:
        return [call for _, _, call in self._heap if call.active()]

    def _first(self) -> DelayedCall | None:
        """The next one; those that were cancelled or put off are sorted out when it is their turn."""
        while self._heap:
            due, _, call = self._heap[0]
            if call.active() and call.getTime() <= due:
                return call
            heapq.heappop(self._heap)
            if call.active():
                call.activate_delay()
                self._push(call)
        return None

    def advance(self, amount: float) -> None:
        """Each call comes at its own time, which need not be the end of this one."""
        end = self.rightNow + amount
        while (call := self._first()) is not None and call.getTime() <= end:
            heapq.heappop(self._heap)
            self.rightNow = max(self.rightNow, call.getTime())
            call.called = 1
            call.func(*call.args, **call.kw)
        self.rightNow = end


@define
class Account:
    """Processor time by who used it, of one thread.

    :ivar spent: nanoseconds; ``calls``: how often each was entered.
    """

    spent: Counter[str] = field(factory=Counter)
    calls: Counter[str] = field(factory=Counter)
    _kind: str = "simulation"
    _since: int = field(factory=thread_time_ns)

    def switch(self, kind: str) -> str:
        """From now on it is this one's; who had it before."""
        now = thread_time_ns()
        before = self._kind
        self.spent[before] += now - self._since
        self._kind, self._since = kind, now
        return before

    def inside(self, kind: str, call: Callable[..., T], *arguments: Any) -> T:
        """Call something that is this one's."""
        self.calls[kind] += 1
        before = self.switch(kind)
        try:
            return call(*arguments)
        finally:
            self.switch(before)

    def clear(self) -> None:
        """Begin anew."""
        self.switch(self._kind)
        self.spent.clear()
        self.calls.clear()


class ProxyClock:
    """The clock that the proxy has: what it asks for is its own when it comes."""

    def __init__(self, clock: HeapClock, account: Account) -> None:
        self._clock = clock
        self._account = account

    def seconds(self) -> float:
        return self._clock.rightNow

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        assert not kw
        return self._clock.callLater(delay, self._account.inside, "timers", callable, *args)
