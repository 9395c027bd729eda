"""The bounded hold queue of one backend, and the count of what is in flight.

Pure: who waits, in which order, and who may go.  A waiter is any object that can be told; it is told by
the caller, never from in here, so that a waiter that hangs up while others are handed over does no harm.
The words (queue, breaker, capacity released through what was acquired) are Knative's activator's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from attrs import define, field

from llmproxy.errors import queue_full

__all__ = ["Admission"]

W = TypeVar("W")


@define
class Admission(Generic[W]):
    """Who waits for one backend, and how many are in flight there.

    :ivar max_waiting: requests held at most; one more is refused.
    :ivar max_in_flight: requests handed over at once at most; ``None``: no limit.
    :ivar open: whether requests are handed over at all.
    :ivar in_flight: requests handed over and not finished.
    :ivar abandoned: somebody waited since the gate was closed, and the last of them has left.
    """

    max_waiting: int
    max_in_flight: int | None = None
    open: bool = False
    in_flight: int = 0
    abandoned: bool = False
    # An ordinary dict looks for its first key from the start each time, over all that have gone.
    _queue: OrderedDict[W, None] = field(factory=OrderedDict)

    @property
    def waiting(self) -> int:
        """How many are held."""
        return len(self._queue)

    def enter(self, waiter: W, retry_after: float = 1.0) -> bool:
        """Take a place: True when it may go on at once (it is in flight then), False when it is held.

        :raises llmproxy.errors.Refusal: ``queue_full``, with ``retry_after`` seconds.
        """
        if self.open and not self._queue and self._has_room():
            self.in_flight += 1
            return True
        if len(self._queue) >= self.max_waiting:
            raise queue_full(self.max_waiting, retry_after)
        self._queue[waiter] = None
        self.abandoned = False
        return False

    def leave(self, waiter: W) -> None:
        """Give up the place of a held waiter; nothing happens when it is not held."""
        if waiter in self._queue:
            del self._queue[waiter]
            if not self._queue and not self.open:
                self.abandoned = True

    def next(self) -> W | None:
        """The next one to go, in order of arrival; it is in flight then.  None: nobody, or no room."""
        if not self.open or not self._queue or not self._has_room():
            return None
        waiter, _ = self._queue.popitem(last=False)
        self.in_flight += 1
        return waiter

    def release(self) -> None:
        """One in flight has finished."""
        self.in_flight -= 1

    def dismiss(self) -> list[W]:
        """All who wait, in order; nobody waits afterwards."""
        queue, self._queue = self._queue, OrderedDict()
        return list(queue)

    def _has_room(self) -> bool:
        return self.max_in_flight is None or self.in_flight < self.max_in_flight
