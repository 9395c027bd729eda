"""What another idle time, or a pin, would have saved: recommendations from what has happened.  Pure.

The recorded periods of use are replayed against a simple model, once with the present settings and once with
the one that is changed, and starts are counted in both.  In the model a start and a stop take no time; a
backend leaves when it has been idle for its time; one that does not fit makes others leave, those first that
nobody uses, then by priority, then by what it costs to load them again and how long nobody has wanted them.
Each recommendation is judged by itself, with all other settings as they are.

A full history takes about a second: it is meant to run in a thread, which
:attr:`~llmproxy.scheduling.history.History.entries` and frozen settings are fit for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from attrs import define, evolve, field, frozen

from llmproxy.config.units import format_duration
from llmproxy.scheduling.history import Entry

__all__ = [
    "IDLE_TIMES",
    "LEAST_DAYS",
    "LEAST_GAIN",
    "LEAST_SAVED",
    "LEAST_STARTS",
    "Advice",
    "Present",
    "advise",
]

LEAST_DAYS = 1.0
"""Days that the record must span: an hour's traffic repeated over a day would be a guess."""
LEAST_STARTS = 5
"""Starts of a backend, recorded and in the model, below which nothing is said of it."""
LEAST_SAVED = 3
"""Starts that a change must save: fewer may be chance."""
LEAST_GAIN = 60.0
"""Seconds of waiting for starts that a change must save a day; less is not worth anybody's attention."""

IDLE_TIMES = tuple(60.0 * m for m in (5, 10, 15, 20, 25, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1440))
"""Idle times that are tried: as a person would write them.  Past a day, "never" is what is meant."""

WORTH = 60.0
"""Seconds for which memory may be taken to spare somebody one second of waiting: an hour for a start of a
minute.  Without a price the advice would be to keep for ever whatever is in nobody's way."""

DAY = 86400.0
_SLACK = 1e-6
"""Fractions such as 0.45 + 0.55 may come to a little more than 1."""


@frozen
class Present:
    """The settings of one backend that are in force.

    :ivar idle: seconds after which it is reaped; 0: never.
    :ivar claims: what it takes of each GPU while it runs, in the unit of the capacities.
    :ivar reload_seconds: how long those wait who want it when it has left (a wake, for one that sleeps).
    """

    idle: float
    claims: Mapping[str, float] = field(factory=dict)
    pinned: bool = False
    priority: int = 0
    reload_seconds: float = 60.0


@frozen
class Advice:
    """One recommendation.

    :ivar present: the setting's value now.
    :ivar value: the one that is recommended (``True`` for a pin).
    :ivar starts: of this backend in the time of the record, with the present setting.
    :ivar saved: how many of them would not have been needed.
    :ivar others: starts of other backends that would have come in addition (negative: fewer).
    :ivar evictions: how often more a backend would have had to leave for another, which waits for that.
    :ivar held: seconds a day, at most, that its memory would be taken longer while nobody uses it.
    :ivar days: that the record spans.
    :ivar gain: seconds a day for which nobody would have waited any more.
    """

    backend: str
    setting: Literal["idle", "pinned"]
    present: float
    value: float
    starts: int
    saved: int
    others: int
    evictions: int
    held: float
    days: float
    gain: float

    @property
    def per_day(self) -> float:
        """Starts saved a day, all backends together."""
        return (self.saved - self.others) / self.days

    def __str__(self) -> str:
        change = (
            "pin it"
            if self.setting == "pinned"
            else f"raise idle from {format_duration(self.present)} to {format_duration(self.value)}"
        )
        days = round(self.days)
        text = (
            f"{self.backend}: {change}: {self.saved} of {self.starts} starts in "
            f"{'a day' if days == 1 else f'{days} days'} would not have been needed"
        )
        if self.others > 0:
            text += f"; others would have started {_times(self.others)} more"
        if self.evictions > 0:
            text += f"; one would have had to make room for another {_times(self.evictions)} more"
        return text


def advise(
    entries: Iterable[Entry], present: Mapping[str, Present], capacities: Mapping[str, float]
) -> list[Advice]:
    """At most one recommendation for each backend, those first that save the most waiting.

    Of another idle time and a pin the one is recommended that is worth more.  A pin is recommended only when
    every other backend still fits beside all pinned ones, and when none would have been refused or made to
    leave while in use that was not before; and only one at a time, as two that fit by themselves need not fit
    together.

    :param entries: in the order of their times.
    :param present: the settings of the backends that are configured; what was recorded of others is ignored.
    :param capacities: what can be claimed of each GPU.  One that is not named limits nothing.
    """
    known = [entry for entry in entries if entry.backend in present]
    if not known:
        return []
    days = (max(entry.until for entry in known) - min(entry.at for entry in known)) / DAY
    uses = [entry for entry in known if entry.kind == "used"]
    if days < LEAST_DAYS:
        return []
    starts = dict.fromkeys(present, 0)
    for entry in known:
        starts[entry.backend] += entry.kind in ("started", "woken")
    judge = _Judge(uses, present, capacities, days)
    often = [
        backend
        for backend, recorded in starts.items()
        if recorded >= LEAST_STARTS and judge.before.starts[backend] >= LEAST_STARTS
    ]
    found = {backend: advice for backend in often if (advice := judge.idle(backend)) is not None}
    pins = [advice for backend in often if (advice := judge.pin(backend)) is not None]
    pin = max(pins, key=_value, default=None)
    if pin is not None and (pin.backend not in found or _value(pin) > _value(found[pin.backend])):
        found[pin.backend] = pin
    return sorted(found.values(), key=lambda advice: -advice.gain)


@define
class _Outcome:
    """What came of a replay.

    :ivar refused: uses that found no room.
    :ivar crowded: backends that had to leave while in use.
    """

    starts: dict[str, int]
    evictions: int = 0
    refused: int = 0
    crowded: int = 0


@define
class _Judge:
    uses: Sequence[Entry]
    present: Mapping[str, Present]
    capacities: Mapping[str, float]
    days: float
    before: _Outcome = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.before = _replay(self.uses, self.present, self.capacities)

    def idle(self, backend: str) -> Advice | None:
        """The longer idle time that is worth the most."""
        now = self.present[backend]
        if now.idle <= 0:
            return None
        gaps = _gaps(use for use in self.uses if use.backend == backend)
        found: list[Advice] = []
        bridged = sum(gap <= now.idle for gap in gaps)
        for idle in IDLE_TIMES:
            more = sum(gap <= idle for gap in gaps)
            if idle <= now.idle or more == bridged:
                continue
            bridged = more
            held = sum(min(gap, idle) - min(gap, now.idle) for gap in gaps) + idle - now.idle
            advice = self._advice(backend, evolve(now, idle=idle), held / self.days)
            if advice is not None and _value(advice) > 0:
                found.append(advice)
        return max(found, key=_value, default=None)

    def pin(self, backend: str) -> Advice | None:
        """A pin, if nobody is shut out by it."""
        now = self.present[backend]
        if now.pinned or not now.claims or not self._leaves_room(backend):
            return None
        return self._advice(backend, evolve(now, pinned=True), 0.0)

    def _leaves_room(self, backend: str) -> bool:
        pinned = {name for name, its in self.present.items() if its.pinned}
        return all(
            self._fits(name, pinned | {backend}) or not self._fits(name, pinned) for name in self.present
        )

    def _fits(self, backend: str, pinned: set[str]) -> bool:
        return all(
            sum(self.present[name].claims.get(gpu, 0.0) for name in pinned | {backend})
            <= self.capacities.get(gpu, float("inf")) + _SLACK
            for gpu in self.present[backend].claims
        )

    def _advice(self, backend: str, changed: Present, held: float) -> Advice | None:
        """What the change is worth; None when it is worth nothing, or does harm."""
        before = self.before
        after = _replay(self.uses, {**self.present, backend: changed}, self.capacities)
        spared = {name: before.starts[name] - after.starts[name] for name in self.present}
        saved = spared[backend]
        total = sum(spared.values())
        gain = sum(count * self.present[name].reload_seconds for name, count in spared.items()) / self.days
        if after.refused > before.refused or after.crowded > before.crowded:
            return None
        if saved < LEAST_SAVED or total < LEAST_SAVED or gain < LEAST_GAIN:
            return None
        now = self.present[backend]
        pin = changed.pinned != now.pinned
        return Advice(
            backend,
            "pinned" if pin else "idle",
            present=now.pinned if pin else now.idle,
            value=changed.pinned if pin else changed.idle,
            starts=before.starts[backend],
            saved=saved,
            others=saved - total,
            evictions=after.evictions - before.evictions,
            held=held,
            days=self.days,
            gain=gain,
        )


def _replay(
    uses: Sequence[Entry], present: Mapping[str, Present], capacities: Mapping[str, float]
) -> _Outcome:
    outcome = _Outcome(dict.fromkeys(present, 0))
    # When the last use of each backend that runs has ended, or will.
    running: dict[str, float] = {}
    for use in uses:
        its, last = present[use.backend], running.get(use.backend)
        if last is not None and not _is_reaped(its, last, use.at):
            running[use.backend] = max(last, use.until)
            continue
        for name in [name for name, end in running.items() if _is_reaped(present[name], end, use.at)]:
            del running[name]
        leaving = _who_leaves(use, running, present, capacities)
        if leaving is None:
            outcome.refused += 1
            continue
        for name in leaving:
            outcome.crowded += running.pop(name) > use.at
        outcome.evictions += len(leaving)
        outcome.starts[use.backend] += 1
        running[use.backend] = use.until
    return outcome


def _is_reaped(its: Present, last: float, now: float) -> bool:
    return 0 < its.idle < now - last


def _who_leaves(
    use: Entry,
    running: Mapping[str, float],
    present: Mapping[str, Present],
    capacities: Mapping[str, float],
) -> list[str] | None:
    """Who has to leave so that this backend fits; None when it cannot."""
    claims = present[use.backend].claims
    over = {
        gpu: sum(present[name].claims.get(gpu, 0.0) for name in running) + claim - capacities[gpu] - _SLACK
        for gpu, claim in claims.items()
        if gpu in capacities
    }
    leaving: list[str] = []

    def order(name: str) -> tuple[bool, int, float]:
        end, its = running[name], present[name]
        return end > use.at, its.priority, its.reload_seconds / (1.0 + max(0.0, use.at - end))

    for name in sorted((name for name in running if not present[name].pinned), key=order):
        if all(need <= 0 for need in over.values()):
            break
        theirs = present[name].claims
        if any(over[gpu] > 0 and theirs.get(gpu) for gpu in over):
            leaving.append(name)
            over = {gpu: need - theirs.get(gpu, 0.0) for gpu, need in over.items()}
    if any(need > 0 for need in over.values()):
        return None
    # A large one that came last may have made room for some of the others.
    for name in reversed(leaving[:-1]):
        theirs = present[name].claims
        if all(need + theirs.get(gpu, 0.0) <= 0 for gpu, need in over.items()):
            leaving.remove(name)
            over = {gpu: need + theirs.get(gpu, 0.0) for gpu, need in over.items()}
    return leaving


def _gaps(uses: Iterable[Entry]) -> list[float]:
    """Seconds between the uses of one backend."""
    gaps: list[float] = []
    end: float | None = None
    for use in uses:
        if end is not None and use.at > end:
            gaps.append(use.at - end)
        end = use.until if end is None else max(end, use.until)
    return gaps


def _value(advice: Advice) -> float:
    return advice.gain - advice.held / WORTH


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
