"""How often backends were started, what came of it, and how long it took, by the fleet's transitions."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from llmproxy.backend.backend import Backend
from llmproxy.backend.lifecycle import StartFailure
from llmproxy.backend.surroundings import Event, Transition
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.family import Family
from llmproxy.web.histogram import Buckets, Histogram

__all__ = ["Starts"]

_STARTS = (
    "Starts that are over, by result: ok; failed (it ended, or was refused); timeout (no health in time);"
    " stopped (somebody wanted it to end); unavailable (Docker did not answer); replaced (restarted by"
    " someone else); adopted (it ran already when it was found)."
)
_START_SECONDS = (
    "Seconds of the starts that succeeded, by phase; phase total is the whole start. Adopted ones are not"
    " counted."
)

_BUCKETS = Buckets(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600)

_FOUND = "found running"
"""The lifecycle's words for a backend that it takes over rather than starts."""
_REPLACED = "it was restarted by someone else"
"""The backend's words for the end of a run that it heard of by the next one."""


@frozen
class _Over:
    """A start that is over, and of which its backend does not say everything yet.

    :ivar before: the last failure of the backend until now.
    """

    backend: Backend | None
    transition: Transition
    adopted: bool
    before: StartFailure | None


class Starts:
    """Follows a fleet, and is a :class:`~llmproxy.web.family.Collector`.

    A transition is told in the middle of a step of the lifecycle, before the backend has written down how
    long the start took or why it failed.  So a start is counted with the next transition of its backend, or
    when somebody looks.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._adopting: dict[str, bool] = {}
        self._over: dict[str, _Over] = {}
        self._results: dict[tuple[str, str], int] = {}
        self._seconds: dict[tuple[str, str], Histogram] = {}
        fleet.follow(self._moved)

    def collect(self) -> Iterator[Family]:
        """See :class:`~llmproxy.web.family.Collector`."""
        self._settle_all()
        starts = Family("counter", "llmproxy_starts", _STARTS, ("backend", "result"))
        for about, count in self._results.items():
            starts.add(about, count)
        yield starts
        seconds = Family("histogram", "llmproxy_start_seconds", _START_SECONDS, ("backend", "phase"))
        for about, histogram in self._seconds.items():
            seconds.add(about, histogram)
        yield seconds

    def _moved(self, transition: Event) -> None:
        if not isinstance(transition, Transition):
            return
        name = transition.backend
        self._settle(name)
        if transition.new == "starting":
            self._adopting[name] = transition.reason == _FOUND
        elif transition.old == "starting":
            backend = self._fleet.backends.get(name)
            before = None if backend is None else backend.last_failure
            self._over[name] = _Over(backend, transition, self._adopting.get(name, False), before)

    def _settle_all(self) -> None:
        for name in list(self._over):
            self._settle(name)

    def _settle(self, name: str) -> None:
        over = self._over.pop(name, None)
        if over is None:
            return
        result = _result(over)
        self._results[name, result] = self._results.get((name, result), 0) + 1
        start = over.backend.last_start if over.backend is not None else None
        if result == "ok" and start is not None:
            for phase, seconds in (*start.phases.items(), ("total", start.seconds)):
                histogram = self._seconds.setdefault((name, phase), Histogram(_BUCKETS))
                histogram.observe(seconds)


def _result(over: _Over) -> str:
    new, backend = over.transition.new, over.backend
    if new == "ready":
        return "adopted" if over.adopted else "ok"
    if new == "sleeping":
        # It ran, and was found to be asleep.
        return "adopted"
    if backend is not None and backend.last_failure not in (None, over.before):
        assert backend.last_failure is not None
        return backend.last_failure.kind
    if new == "absent":
        return "replaced" if over.transition.reason == _REPLACED else "unavailable"
    return "stopped" if new == "stopping" else "failed"
