"""Why a backend runs, waits or has left, and what a plan means, in sentences for a person.  Pure.

What is told is handed in as plain values; nothing here knows the scheduler, so that the operator's command
may use its words, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from llmproxy.engines.needs import Needs
from llmproxy.scheduling.claims import Room
from llmproxy.scheduling.learned import Estimate
from llmproxy.scheduling.outlook import Leave, Plan, Wait
from llmproxy.words import duration

__all__ = ["GpuSum", "Left", "Story", "duration", "ready_in", "tell_plan", "tell_why"]

_FOUND = ("found running", "found asleep")
"""The lifecycle's words for what it takes over rather than starts."""


@frozen
class GpuSum:
    """Who has the memory of one GPU.

    :ivar held: units by name of a backend.
    """

    gpu: str
    room: Room
    held: Mapping[str, int] = field(factory=dict)

    @property
    def free(self) -> int:
        """Units that nobody has claimed."""
        return self.room.capacity - sum(self.held.values())

    def __str__(self) -> str:
        room = self.room
        parts = [f"{name} has {room.told(units)}" for name, units in self.held.items() if units]
        if room.leased:
            parts.append(f"{room.told(room.leased)} is lent")
        if room.reserve:
            parts.append(f"{room.told(room.reserve)} is reserved")
        parts.append(f"{room.told(max(0, self.free))} is free")
        return f"Of GPU {self.gpu}'s {room.told(room.total)} {', '.join(parts)}."


@frozen
class Left:
    """How it went away the last time: when (POSIX seconds), why, and for whom, if for anybody."""

    at: float
    why: str
    whom: str | None = None


@frozen
class Story:
    """What is known of one backend.

    :ivar now: POSIX seconds, as all times here.
    :ivar since: when it came into its state.
    :ivar elsewhere: it is never started or stopped here.
    :ivar phase: how far its start is, or what those who want it wait for.
    :ivar progress: the part of the phase that is done.
    :ivar eta: seconds until it is ready; None: not known.
    :ivar begun: the reason of its last start or wake; empty: it was not seen.
    :ivar woken: that was a wake.
    :ivar awaited: somebody waited for it then.
    :ivar made_room: those who left for it then.
    :ivar wait: what it waits for.
    :ivar drain_at: when busy ones begin to drain for those who wait, at the earliest.
    :ivar refused: why requests are refused at present.
    :ivar unfit: why it was not started when it was wanted last.
    :ivar stays_until: until when it stays after others have left for it.
    :ivar leaves_in: seconds until it leaves if nobody uses it; None: it does not by itself.
    :ivar gpus: those that it needs.
    :ivar host: the one that it is on, where there are several; ``away``: that is not there at present.
    :ivar tasks: of one that runs as several tasks, how many those are
        (:func:`llmproxy.fleet.telling_tasks.tell_tasks`).
    :ivar start: what is to be expected of it; ``wake`` of the level it would be woken from.
    """

    name: str
    state: str
    now: float
    since: float
    needs: Needs
    start: Estimate
    elsewhere: bool = False
    phase: str | None = None
    progress: float | None = None
    eta: float | None = None
    begun: str = ""
    woken: bool = False
    awaited: bool = False
    made_room: Sequence[str] = ()
    left: Left | None = None
    in_flight: int = 0
    waiting: int = 0
    waiting_since: float | None = None
    wait: Wait | None = None
    drain_at: float | None = None
    refused: str = ""
    unfit: str = ""
    retry_in: float | None = None
    pinned: bool = False
    stays_until: float = 0.0
    leaves_in: float | None = None
    level: int = 1
    gpus: Sequence[GpuSum] = ()
    host: str = ""
    away: bool = False
    tasks: Sequence[str] = ()


def tell_why(story: Story) -> list[str]:
    """Why it runs, waits or has left; when it will leave; what it needs, and how long a start takes."""
    lines = [f"{story.name} is {_state(story)}, for {duration(story.now - story.since)}."]
    if story.host and story.state not in ("absent", "failed"):
        lines.append(f"It is on {story.host}{', which is away' if story.away else ''}.")
    if story.state in ("ready", "draining", "starting", "waking"):
        lines += _origin(story)
    if story.state in ("draining", "stopping", "falling_asleep", "sleeping", "absent"):
        lines += _departure(story)
    lines += [*story.tasks, *_queue(story)]
    if story.state in ("ready", "sleeping"):
        lines += _stay(story)
    lines += _needs(story)
    if not story.elsewhere:
        lines.append(_times(story))
    return [*lines, *story.needs.remarks]


def _state(story: Story) -> str:
    return f"sleeping at level {story.level}" if story.state == "sleeping" else story.state.replace("_", " ")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _origin(story: Story) -> list[str]:
    verb = "woken" if story.woken else "started"
    if not story.begun:
        return []
    if story.begun in _FOUND:
        return ["It ran already when llmproxy found it."]
    if story.state in ("starting", "waking"):
        lines = [f"It is being {verb}: {story.begun}.", *_progress(story)]
    elif story.awaited:
        lines = [f"It was {verb} for requests that waited for it."]
    else:
        lines = [
            f"It was {verb} without a request waiting: by the operator, by prewarm, or for one that had left."
        ]
    if story.made_room:
        lines.append(f"{_listed(story.made_room)} had to leave for it.")
    return lines


def _progress(story: Story) -> list[str]:
    if story.phase is None:
        return []
    part = "" if story.progress is None else f" ({story.progress:.0%})"
    when = "" if story.eta is None else f", and should be ready in about {duration(story.eta)}"
    return [f"It is {story.phase}{part}{when}."]


def _departure(story: Story) -> list[str]:
    left = story.left
    if left is None:
        wanted = story.waiting or story.wait is not None
        never = story.state == "absent" and not story.begun and not wanted
        return ["Nobody has asked for it since llmproxy knows it."] if never else []
    ago = duration(story.now - left.at)
    if left.whom is not None:
        return [f"It was evicted {ago} ago: it {left.why}."]
    return [f"It left {ago} ago: {left.why}."]


def _queue(story: Story) -> list[str]:
    lines: list[str] = []
    if story.waiting:
        since = "" if story.waiting_since is None else f", the first for {_ago(story, story.waiting_since)}"
        verb = "waits" if story.waiting == 1 else "wait"
        lines.append(f"{_count(story.waiting, 'request')} {verb} for it{since}.")
    elif story.wait is not None and story.waiting_since is not None:
        lines.append(f"It has been wanted for {_ago(story, story.waiting_since)}.")
    if story.wait is not None:
        lines.append(f"It waits: {story.wait.why}.")
        if story.eta is not None:
            lines.append(f"It should be ready in about {duration(story.eta)}.")
        if story.drain_at is not None and story.drain_at > story.now:
            left = duration(story.drain_at - story.now)
            lines.append(f"In {left} at the earliest busy ones take no new requests, and leave when drained.")
        lines += [str(one) for one in story.gpus]
    if story.refused:
        again = "" if story.retry_in is None else f" It is tried again in {duration(story.retry_in)}."
        lines.append(f"Requests are refused: {story.refused.rstrip('.')}.{again}")
    elif story.unfit and not story.waiting and story.wait is None:
        lines.append(f"When it was last asked for it was refused: {story.unfit.rstrip('.')}.")
    return lines


def _ago(story: Story, at: float) -> str:
    return duration(story.now - at)


def _stay(story: Story) -> list[str]:
    lines: list[str] = []
    if story.in_flight:
        verb = "is" if story.in_flight == 1 else "are"
        lines.append(f"{_count(story.in_flight, 'request')} {verb} in flight there.")
    if story.stays_until > story.now:
        lines.append(
            f"It stays for {duration(story.stays_until - story.now)} more at least, as others left for it."
        )
    goes = "falls asleep" if story.state == "ready" and story.needs.sleep else "stops"
    if story.pinned and story.state == "ready":
        lines.append("It is pinned: it leaves for no other model, nor because nobody uses it.")
    elif story.leaves_in is not None:
        lines.append(f"It {goes} in {duration(story.leaves_in)} unless a request comes.")
    if story.needs.gpus and not story.pinned:
        lines.append("When another model needs its room it may have to leave before that.")
    return lines


def _needs(story: Story) -> list[str]:
    needs = story.needs
    if not needs.gpus:
        return [f"It needs no GPU memory ({needs.why})." if needs.why else "It needs no GPU memory."]
    sums = [f"{one.room.told(one.room.units(needs.memory))} of GPU {one.gpu}" for one in story.gpus]
    return [f"It needs {_listed(sums)} ({needs.why})."]


def _times(story: Story) -> str:
    found = story.start

    def told(seconds: float, name: str) -> str:
        return f"{duration(seconds)} ({'measured' if name in found.measured else 'assumed'})"

    parts = [f"A start takes about {told(found.reload_seconds, 'reload_seconds')}"]
    if story.needs.sleep:
        parts.append(f"a wake {told(found.wake_seconds, 'wake_seconds')}")
        parts.append(f"falling asleep {told(found.sleep_seconds, 'sleep_seconds')}")
    parts.append(f"a stop {told(found.stop_seconds, 'stop_seconds')}")
    return ", ".join(parts) + "."


def ready_in(found: Plan, name: str, estimates: Mapping[str, Estimate], *, asleep: bool) -> float | None:
    """Seconds until ``name`` would answer by this plan; None when nobody can say.

    :param asleep: it would be woken.
    """
    its = estimates.get(name)
    if its is None:
        return None
    own = its.wake_seconds if asleep else its.reload_seconds
    if any(start.name == name for start in found.starts):
        return own
    leaves = [leave for leave in found.leaves if leave.whom == name]
    if not leaves or any(leave.drain or leave.name not in estimates for leave in leaves):
        return None
    others = {other for wait in found.waits if wait.name == name for other in wait.on}
    if others - {leave.name for leave in leaves}:
        return None
    return own + max(_seconds_of(leave, estimates[leave.name]) for leave in leaves)


def _seconds_of(leave: Leave, its: Estimate) -> float:
    return its.stop_seconds if leave.how == "stop" else its.sleep_seconds


def tell_plan(found: Plan, now: float, *, asleep: frozenset[str] = frozenset()) -> list[str]:
    """What a plan means, a sentence for each step.

    :param now: POSIX seconds.
    :param asleep: those that a start wakes.
    """
    lines = [
        f"{start.name} {'is woken' if start.name in asleep else 'starts'} now: {start.why}."
        for start in found.starts
    ]
    for leave in found.leaves:
        goes = "stops" if leave.how == "stop" else f"falls asleep at level {leave.how}"
        when = "takes no new requests, and then " if leave.drain else ""
        lines.append(f"{leave.name} {when}{goes}: {_REASONS.get(leave.why, leave.why)}.")
    lines += [f"{wait.name} waits: {wait.why}." for wait in found.waits]
    for refuse in found.refusals:
        again = "" if refuse.until is None else f" It could fit in {duration(refuse.until - now)}."
        kind = "is refused to keys that may not evict" if refuse.forbidden else "does not fit"
        lines.append(f"{refuse.name} {kind}: {refuse.why}.{again}")
    return lines


_REASONS = {
    "idle": "nobody has used it for long enough",
    "wanted": "somebody wants it to go",
    "drained": "it has drained",
}
"""What the placement says of those who leave by themselves."""
