"""Python's collector of cycles, told what a proxy is like.

What a request leaves behind is freed by its reference counts, as nothing on its way refers to itself; a test
holds the relay to that.  But the collector looks through everything that lives each time that 700 more
objects were made than freed, which some dozens of requests at once do over and over: a tenth of what a
request costs, and pauses that are the longest delays of a token (docs/benchmarks.md).
"""

from __future__ import annotations

import ctypes
import gc
import linecache

__all__ = ["give_back", "tune_collector"]

YOUNG = 20_000
"""Objects more made than freed before the collector looks: those of a thousand requests in flight."""


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
    """Give the system back what the start has used and nobody needs: about 1 MB.

    That is the text of methods which attrs has written, kept for tracebacks, and free memory between what
    stays, where the C library can give that back (``malloc_trim(3)`` of glibc).
    """
    linecache.clearcache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
