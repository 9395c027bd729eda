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

STILL = 5.0
"""Seconds without a waiter after which a demand is another one.  A client that gives up and asks again must
not make it look young, or it would never have waited for long enough to have others leave for it."""

RETRY_AFTER = 1.0
"""Seconds after which one that found the queue full may try again."""


@define
class _Place:
    """Where a waiter stands: since when, and whether others may have to leave for it."""

    since: float
    may_evict: bool


@define
class Admission(Generic[W]):
    """Who waits for one backend, and how many are in flight there.

    Those of a higher priority go first; among those of one, who came first.

    :ivar max_waiting: requests held at most; one more is refused.
    :ivar max_in_flight: requests handed over at once at most; ``None``: no limit.
    :ivar open: whether requests are handed over at all.
    :ivar in_flight: requests handed over and not finished.
    :ivar waiting: how many are held.
    :ivar abandoned: somebody waited since the gate was closed, and the last of them has left.
    """

    max_waiting: int
    max_in_flight: int | None = None
    open: bool = False
    in_flight: int = 0
    waiting: int = 0
    abandoned: bool = False
    # By priority.  An ordinary dict looks for its first key from the start, over all that have gone.
    _queues: dict[int, OrderedDict[W, _Place]] = field(factory=dict)
    _evictors: int = 0
    # Since when somebody waits, but for short breaks, and when the last break began.
    _wanted_since: float | None = None
    _left_at: float = 0.0

    def enter(self) -> bool:
        """Whether one may go on at once; it is in flight then."""
        if self.open and not self.waiting and self._has_room():
            self.in_flight += 1
            return True
        return False

    @property
    def roomy(self) -> bool:
        """Whether one may go on at once."""
        return self.open and not self.waiting and self._has_room()

    def hold(
        self, waiter: W, now: float, *, priority: int = 0, may_evict: bool = True, bounded: bool = True
    ) -> None:
        """Give a place in the queue to one that may not.

        :param now: since when it waits (seconds).
        :param bounded: it gets none beyond ``max_waiting``.
        :raises llmproxy.errors.Refusal: ``queue_full``.
        """
        if bounded and self.waiting >= self.max_waiting:
            raise queue_full(self.max_waiting, RETRY_AFTER)
        if self._wanted_since is None or (not self.waiting and now - self._left_at > STILL):
            self._wanted_since = now
        self._queues.setdefault(priority, OrderedDict())[waiter] = _Place(now, may_evict)
        self.waiting += 1
        self._evictors += may_evict
        self.abandoned = False

    def leave(self, waiter: W, now: float) -> None:
        """Give up the place of a held waiter; nothing happens when it is not held."""
        for priority, queue in self._queues.items():
            place = queue.pop(waiter, None)
            if place is not None:
                self._left(priority, place)
                self._left_at = now
                if not self.waiting and not self.open:
                    self.abandoned = True
                return

    def _left(self, priority: int, place: _Place) -> None:
        self.waiting -= 1
        self._evictors -= place.may_evict
        if not self._queues[priority]:
            del self._queues[priority]

    def next(self) -> W | None:
        """The next one to go; it is in flight then.  None: nobody, or no room."""
        if not self.open or not self.waiting or not self._has_room():
            return None
        priority = max(self._queues)
        waiter, place = self._queues[priority].popitem(last=False)
        self._left(priority, place)
        self._wanted_since = self._oldest()
        self.in_flight += 1
        return waiter

    def release(self) -> None:
        """One in flight has finished."""
        self.in_flight -= 1

    def dismiss(self) -> list[W]:
        """All who wait, in order; nobody waits afterwards."""
        queues, self._queues = self._queues, {}
        self.waiting = self._evictors = 0
        self._wanted_since = None
        return [waiter for priority in sorted(queues, reverse=True) for waiter in queues[priority]]

    @property
    def waiting_since(self) -> float | None:
        """Since when somebody waits, also if it was another one at first; None when nobody does."""
        return self._wanted_since if self.waiting else None

    def _oldest(self) -> float | None:
        firsts = [next(iter(queue.values())).since for queue in self._queues.values()]
        return min(firsts, default=None)

    @property
    def urgency(self) -> int:
        """The highest priority of those who wait."""
        return max(self._queues, default=0)

    @property
    def may_evict(self) -> bool:
        """Whether others may have to leave for one of those who wait."""
        return self._evictors > 0

    def _has_room(self) -> bool:
        return self.max_in_flight is None or self.in_flight < self.max_in_flight
