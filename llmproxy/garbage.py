"""What is used no more: Python's collector of cycles, told what a proxy is like, and memory given back.

What a request leaves behind is freed by its reference counts, as nothing on its way refers to itself; a test
holds the relay to that.  But the collector looks through everything that lives each time that 700 more
objects were made than freed, which some dozens of requests at once do over and over: a tenth of what a
request costs, and pauses that are the longest delays of a token (docs/benchmarks.md).
"""

from __future__ import annotations

import ctypes
import gc
import linecache
import time
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

__all__ = ["Tidy", "give_back", "tune_collector"]

YOUNG = 20_000
"""Objects more made than freed before the collector looks: those of a thousand requests in flight."""


TIDY_EVERY = 60.0
"""Seconds between looks at whether anything has been done whose memory may be given back."""

WORKED = 0.1
"""Seconds of processor time from which on something has: some hundred requests.  A proxy at rest takes a
sixth of that in a minute."""


def tune_collector() -> None:
    """Call once, when everything that stays has been made.

    What there is by then is never looked through again (:func:`gc.freeze`), and what a later reading of the
    configuration replaces of it is kept: once, and no more than the start has made.
    """
    gc.collect()
    give_back()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)


def give_back() -> None:
    """Give the system back what has been used and nobody needs: about 1 MB after the start.

    That is the text of methods which attrs has written, kept for tracebacks, and free memory between what
    stays, where the C library can give that back (``malloc_trim(3)`` of glibc).  By itself it gives back only
    what is free at the end of the heap, and a crowd leaves a hole of many megabytes below whatever has been
    made last.  It takes 0.1 ms for each megabyte that it gives back.
    """
    linecache.clearcache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Tidy:
    """Gives back, about once a minute, what the requests of that time have left free.

    :param worked: seconds of processor time that this process has had so far.
    """

    def __init__(
        self,
        clock: IReactorTime,
        worked: Callable[[], float] = time.process_time,
        give_back: Callable[[], None] = give_back,
    ) -> None:
        self._worked = worked
        self._give_back = give_back
        self._seen = worked()
        self._looking = LoopingCall(self._look)
        self._looking.clock = clock

    def start(self) -> None:
        """Begin to."""
        self._looking.start(TIDY_EVERY, now=False)

    def _look(self) -> None:
        if self._worked() - self._seen >= WORKED:
            self._give_back()
            self._seen = self._worked()
