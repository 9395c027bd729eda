"""Threads for calls that block: a pool apart from the reactor's, which DNS shares.

The threads are daemons: a call to a Docker engine may stall for 20 s, a pull for minutes, and neither may
hold up the end of the process (``threading._shutdown`` waits for all others).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

__all__ = ["Lane"]

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "Deferred[Any]"]


@define(eq=False)
class Lane:
    """Some daemon threads that carry out blocking calls in order; made when they are first needed.

    :ivar name: for the threads' names.
    :ivar size: how many calls may be under way at once.
    :ivar at_end: called in each thread as the last thing.
    """

    _reactor: IReactorFromThreads
    name: str
    size: int
    at_end: Callable[[], None] = field(default=lambda: None)
    _jobs: SimpleQueue[_Job | None] = field(factory=SimpleQueue, init=False)
    _threads: list[threading.Thread] = field(factory=list, init=False)
    _waiting: set[Deferred[Any]] = field(factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    @property
    def crowded(self) -> bool:
        """More is asked for than there are threads."""
        return len(self._waiting) > self.size

    def run(self, job: Callable[[], T]) -> Deferred[T]:
        """Carry it out in a thread.  Cancelling gives up waiting; the call itself goes on, and one that has
        not begun yet is left out."""
        if self._closed:
            return fail(CancelledError())
        waiting: Deferred[T] = Deferred()
        self._waiting.add(waiting)
        self._jobs.put((job, waiting))
        if len(self._threads) < min(self.size, len(self._waiting)):
            thread = threading.Thread(
                target=self._work, name=f"{self.name}-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return waiting.addBoth(self._done, waiting)

    def close(self) -> None:
        """Cancel what is waited for, and let the threads end when their present call is over."""
        self._closed = True
        for waiting in list(self._waiting):
            waiting.cancel()
        for _ in self._threads:
            self._jobs.put(None)

    def _done(self, result: T, waiting: Deferred[T]) -> T:
        self._waiting.discard(waiting)
        return result

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, waiting = item
            if waiting.called:
                continue
            result: Any
            try:
                result = job()
            except BaseException:  # whatever it is, it belongs to the one who asked
                result = Failure()
                result.cleanFailure()
            self._reactor.callFromThread(_deliver, waiting, result)
            # Keep nothing alive while waiting for the next job.
            del item, job, waiting, result
        self.at_end()


def _deliver(waiting: Deferred[Any], result: Any) -> None:
    if not waiting.called:
        waiting.callback(result)
