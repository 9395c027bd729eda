"""What was measured of each backend: how long it takes to start, wake, sleep and stop, and what it keeps.

Pure: no clock, no file.  Measurements are kept by route and fingerprint of the configuration, as another
model behind the same route says nothing about this one.  Estimates come from the last :data:`KEEP`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

from attrs import define, field, frozen

from llmproxy.config.units import LARGEST, LONGEST

__all__ = ["KEEP", "KEPT", "MOST", "RELOAD", "SLEEP", "STOP", "WAKE", "Estimate", "Learned"]

KEEP = 5
"""Measurements of a kind that count.  Their median: one start from a cold page cache, or beside a download,
is outvoted after two others and forgotten after five; a lasting change (another disk) counts after three."""

MOST = 200
"""Configurations that are remembered where nobody says how many: far more than models on one machine, and
about 100 KiB."""

MOST_PHASES = 16
"""Phases of a start that are remembered; vLLM has seven."""

LONGEST_NAME = 256
"""Characters of a route, fingerprint or phase."""

RELOAD = 60.0
"""Seconds of a start that was never seen.  Others measured 48 s to 3 min for models of one GPU; those of a
consumer's GPU are at the lower end."""

WAKE = 3.0
"""Seconds of a wake that was never seen: 0.3-2.6 s were measured for small models, 3-6 s for large ones."""

SLEEP = 3.0
"""Seconds of falling asleep: level 1 copies to the host what a wake copies back, and takes as long."""

STOP = 5.0
"""Seconds of a stop.  An idle vLLM is gone in 0.4 s on a CPU; a GPU's memory takes longer to come back, and
Ollama found 5 s to be enough to wait for that."""

KEPT = 2 * 1024**3
"""Bytes that an engine keeps on its GPU while it sleeps: the CUDA context, graphs and communication buffers
are 1-2 GiB.  Too little would fail the next start, too much only makes one more leave."""


@frozen
class Estimate:
    """What is to be expected of one configuration.

    :ivar reload_seconds: from the decision to start it until it is healthy.
    :ivar wake_seconds: of a wake from the level that was asked about.
    :ivar phases: seconds of each phase of a start, in their order; empty when nothing is known.
    :ivar kept_asleep: bytes on each of its GPUs while it sleeps.
    :ivar measured: names of the fields above that were measured; the others are defaults.
    """

    reload_seconds: float = RELOAD
    wake_seconds: float = WAKE
    sleep_seconds: float = SLEEP
    stop_seconds: float = STOP
    phases: Mapping[str, float] = field(factory=dict)
    kept_asleep: int = KEPT
    measured: frozenset[str] = frozenset()


def _last() -> deque[Any]:
    return deque(maxlen=KEEP)


@define
class _Configuration:
    """The last measurements, oldest first."""

    starts: deque[tuple[float, dict[str, float]]] = field(factory=_last)
    wakes: dict[int, deque[float]] = field(factory=lambda: {1: _last(), 2: _last()})
    sleeps: deque[float] = field(factory=_last)
    stops: deque[float] = field(factory=_last)
    kept: deque[int] = field(factory=_last)


@define
class Learned:
    """Measurements of all configurations.

    A measurement that cannot be true (negative, not finite) is dropped: the clock was set meanwhile.

    :ivar most: configurations to remember; those not seen for longest, measured or asked about, are
        forgotten.
    """

    most: int = MOST
    _known: OrderedDict[tuple[str, str], _Configuration] = field(factory=OrderedDict, init=False)

    def started(self, route: str, fingerprint: str, phases: Mapping[str, float], seconds: float) -> None:
        """A start succeeded: the seconds of its phases, in their order, and of the whole."""
        if _is_seconds(seconds):
            self._at(route, fingerprint).starts.append((float(seconds), _phases(phases)))

    def woke(self, route: str, fingerprint: str, level: int, seconds: float) -> None:
        """It woke from sleep of that level (1 or 2)."""
        if level in (1, 2) and _is_seconds(seconds):
            self._at(route, fingerprint).wakes[level].append(float(seconds))

    def slept(self, route: str, fingerprint: str, seconds: float) -> None:
        """It fell asleep, which took so long."""
        if _is_seconds(seconds):
            self._at(route, fingerprint).sleeps.append(float(seconds))

    def stopped(self, route: str, fingerprint: str, seconds: float) -> None:
        """It was stopped, and its memory was free, after so long."""
        if _is_seconds(seconds):
            self._at(route, fingerprint).stops.append(float(seconds))

    def kept_asleep(self, route: str, fingerprint: str, amount: int) -> None:
        """While it slept it kept so many bytes on the one of its GPUs where it kept the most."""
        if _is_bytes(amount):
            self._at(route, fingerprint).kept.append(amount)

    def estimate(self, route: str, fingerprint: str, level: int = 1) -> Estimate:
        """What to expect of that configuration; ``level``: of the sleep that it would wake from."""
        known = self._known.get((route, fingerprint))
        if known is None:
            return Estimate()
        self._known.move_to_end((route, fingerprint))
        found: dict[str, Any] = {}
        if known.starts:
            found["reload_seconds"] = _median(seconds for seconds, _ in known.starts)
            phases = _typical_phases([phases for _, phases in known.starts])
            if phases:
                found["phases"] = phases
        for name, measured in (
            ("wake_seconds", known.wakes.get(level)),
            ("sleep_seconds", known.sleeps),
            ("stop_seconds", known.stops),
        ):
            if measured:
                found[name] = _median(measured)
        if known.kept:
            # Not the median: a start into memory that is not there fails.
            found["kept_asleep"] = max(known.kept)
        return Estimate(**found, measured=frozenset(found))

    def dump(self) -> dict[str, Any]:
        """All of it, fit for JSON."""
        return {
            "version": 1,
            "configurations": [
                {
                    "route": route,
                    "fingerprint": fingerprint,
                    "starts": [[seconds, phases] for seconds, phases in known.starts],
                    "wakes": {str(level): list(seconds) for level, seconds in known.wakes.items()},
                    "sleeps": list(known.sleeps),
                    "stops": list(known.stops),
                    "kept": list(known.kept),
                }
                for (route, fingerprint), known in self._known.items()
            ],
        }

    def load(self, dumped: object) -> None:
        """Take what :meth:`dump` gave in place of what is known.  What is damaged is left out; of another
        version, or nothing like it, nothing is taken."""
        self._known.clear()
        if not isinstance(dumped, dict) or dumped.get("version") != 1:
            return
        for entry in _items(dumped.get("configurations")):
            if not isinstance(entry, dict):
                continue
            route, fingerprint = entry.get("route"), entry.get("fingerprint")
            if not _is_name(route) or not _is_name(fingerprint):
                continue
            for start in _items(entry.get("starts")):
                if isinstance(start, list) and len(start) == 2 and isinstance(start[1], dict):
                    self.started(route, fingerprint, start[1], start[0])
            wakes = entry.get("wakes")
            if isinstance(wakes, dict):
                for level in (1, 2):
                    for seconds in _items(wakes.get(str(level))):
                        self.woke(route, fingerprint, level, seconds)
            told: tuple[tuple[str, Callable[[str, str, Any], None]], ...] = (
                ("sleeps", self.slept),
                ("stops", self.stopped),
                ("kept", self.kept_asleep),
            )
            for name, tell in told:
                for measured in _items(entry.get(name)):
                    tell(route, fingerprint, measured)

    def _at(self, route: str, fingerprint: str) -> _Configuration:
        known = self._known.setdefault((route, fingerprint), _Configuration())
        self._known.move_to_end((route, fingerprint))
        while len(self._known) > self.most:
            self._known.popitem(last=False)
        return known


def _median(measured: Iterable[float]) -> float:
    """The middle one.  Of an even number the smaller of the two: the slow one is the exception."""
    ordered = sorted(measured)
    return ordered[(len(ordered) - 1) // 2]


def _typical_phases(starts: list[dict[str, float]]) -> dict[str, float]:
    """The phases that most starts had (a download happens once), in the order of the last start."""
    names = dict.fromkeys(name for phases in reversed(starts) for name in phases)
    medians = {name: _median(phases.get(name, 0.0) for phases in starts) for name in names}
    return {name: seconds for name, seconds in medians.items() if seconds > 0}


def _phases(phases: Mapping[Any, Any]) -> dict[str, float]:
    fit = {name: float(value) for name, value in phases.items() if _is_name(name) and _is_seconds(value)}
    return dict(list(fit.items())[:MOST_PHASES])


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= LONGEST_NAME


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST


def _is_bytes(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST
