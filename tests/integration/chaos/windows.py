"""What was wrong when, and what that excuses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from attrs import define, field

__all__ = ["ALL", "BACKEND", "COOLING", "Window", "Windows"]

ALL = frozenset({"cut", "refused", "unreachable", "term"})
"""Everything that may be excused, as by a proxy that is killed: an answer that ended early; a refusal; a
connection that was not taken, or ended before its answer; a TERM to a backend with requests in flight."""

BACKEND = ALL - {"unreachable"}
"""What a backend's end excuses: the proxy is there, and says so."""

COOLING = 60.0
"""Seconds after a fault in which a start that it made fail may still be held against a backend."""


@define
class Window:
    """A fault and its time.

    :ivar ended: None while it goes on.
    :ivar routes: those that it is about; None: all.
    :ivar after: seconds after its end for which it excuses still.
    """

    name: str
    began: float
    routes: frozenset[str] | None
    excuses: frozenset[str]
    after: float
    ended: float | None = None

    def reaches(self, route: str, began: float, ended: float, more: float = 0.0) -> bool:
        """Whether it was on, or had hardly ended, within that time of that route."""
        if self.routes is not None and route not in self.routes:
            return False
        over = self.ended is not None and self.ended + max(self.after, more) < began
        return self.began <= ended and not over


@define
class Windows:
    """All of them; threads add to it."""

    all: list[Window] = field(factory=list)
    faults: Counter[str] = field(factory=Counter)
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def open(
        self,
        name: str,
        excuses: Collection[str] = (),
        routes: Collection[str] | None = None,
        after: float = 3.0,
    ) -> Iterator[Window]:
        """A fault for as long as the block goes on."""
        found = Window(
            name,
            time.monotonic(),
            None if routes is None else frozenset(routes),
            frozenset(excuses),
            after,
        )
        with self._lock:
            self.all.append(found)
            self.faults[name] += 1
        try:
            yield found
        finally:
            found.ended = time.monotonic()

    def excuse(self, what: str, route: str, began: float, ended: float, more: float = 0.0) -> str | None:
        """The name of a fault that excuses that; ``more``: seconds that it may be ago."""
        with self._lock:
            known = list(self.all)
        for each in reversed(known):
            if what in each.excuses and each.reaches(route, began, ended, more):
                return each.name
        return None
