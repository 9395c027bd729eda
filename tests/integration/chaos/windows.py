"""What was wrong when, and what that excuses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from attrs import define, field

__all__ = ["ALL", "BACKEND", "TERMED", "Window", "Windows"]

ALL = frozenset({"cut", "refused", "unreachable", "term"})
"""Everything that may be excused, as by a proxy that is killed: an answer that ended early; a refusal; a
connection that was not taken, or ended before its answer; a TERM to a backend with requests in flight."""

TERMED = ALL - {"unreachable"}
"""What a TERM to a backend from outside excuses: the proxy is there, and says so."""

BACKEND = TERMED - {"term"}
"""What any other end of a backend excuses."""

LAG = 15.0
"""Seconds after its cause at most that an answer which is cut ends: a slow reader has some of it to read."""


TAKEN = 1.0
"""Seconds after which a connection has been accepted by a proxy that is well."""


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

    def reaches(self, route: str, began: float, ended: float) -> bool:
        """Whether it was on, or had hardly ended, within that time of that route."""
        if self.routes is not None and route not in self.routes:
            return False
        over = self.ended is not None and self.ended + self.after < began
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

    def excuse(self, what: str, route: str, began: float, ended: float) -> str | None:
        """The name of a fault that excuses that.

        :param what: one of ``ALL``, or ``silent``: an event stream was cut and does not say so, which only a
            sudden end of the proxy itself excuses.
        """
        since = max(began, ended - LAG) if what in ("cut", "silent") else began
        with self._lock:
            known = list(self.all)
        for each in reversed(known):
            sudden = each.excuses >= ALL
            # A proxy that ends, or has no descriptor, takes nobody; whom it has taken it answers.
            taken = what == "unreachable" and began < each.began - TAKEN
            excuses = sudden if what == "silent" or taken else what in each.excuses
            if excuses and each.reaches(route, since, ended):
                return each.name
        return None
