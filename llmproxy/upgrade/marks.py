"""In the new process: requests that the old one still carries count as in flight until they are over."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from llmproxy.backend.gate import Occupation
from llmproxy.fleet.fleet import Fleet

__all__ = ["Marks"]


class Marks:
    """How many there are behind each backend, as the old process tells."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._counts: Mapping[str, int] | None = None
        self._marks: dict[str, list[Occupation]] = {}
        self._spared: list[tuple[str, Deferred[None]]] = []

    def set(self, counts: Mapping[str, int]) -> None:
        """There are so many now, by route; none where nothing is said."""
        self._counts = counts
        for route in {*counts, *self._marks}:
            self._mark(route, counts.get(route, 0))
        waiting, self._spared = self._spared, []
        for route, free in waiting:
            if counts.get(route, 0):
                self._spared.append((route, free))
            elif not free.called:
                free.callback(None)

    def _mark(self, route: str, count: int) -> None:
        marks = self._marks.setdefault(route, [])
        while len(marks) > count:
            marks.pop().release()
        backend = self._fleet.route(route)
        while backend is not None and len(marks) < count:
            marks.append(backend.gate.occupy())
        if not marks:
            del self._marks[route]

    def spared(self, route: str) -> Deferred[None]:
        """Fires when the old process has nothing there.

        Fails with ``CancelledError`` before it has said what it has: who looks at what runs shall not wait.
        """
        if self._counts is None:
            return fail(CancelledError())
        if not self._counts.get(route, 0):
            return succeed(None)
        free: Deferred[None] = Deferred()
        self._spared.append((route, free))
        return free
