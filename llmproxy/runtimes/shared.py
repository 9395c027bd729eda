"""One thing that is under way, and several who wait for it."""

from __future__ import annotations

from typing import Generic, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Shared", "shielded"]

T = TypeVar("T")


@define(eq=False)
class Shared(Generic[T]):
    """Has one result for all who wait for it.  A failure is theirs; where nobody waits, nobody hears of it.

    :ivar over: the result is there.
    """

    _inner: Deferred[T]
    over: bool = field(default=False, init=False)
    _waiting: list[Deferred[T]] = field(factory=list, init=False)
    _results: list[T | Failure] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._inner.addBoth(self._tell)

    def wait(self) -> Deferred[T]:
        """The result; cancelling gives up waiting, and leaves the others and the thing itself alone."""
        waiting: Deferred[T] = Deferred()
        for result in self._results:
            waiting.callback(result)
        if not self.over:
            self._waiting.append(waiting)
        return waiting

    def cancel(self) -> None:
        """Give up the thing itself."""
        self._inner.cancel()

    def _tell(self, result: T | Failure) -> None:
        self.over = True
        self._results.append(result)
        waiters, self._waiting = self._waiting, []
        for waiting in waiters:
            if not waiting.called:
                waiting.callback(result)


def shielded(inner: Deferred[T]) -> Deferred[T]:
    """The result of what goes on when the one who waits for it gives up.

    :param inner: used by nobody else.
    """
    return Shared(inner).wait()
