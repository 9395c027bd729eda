"""What the scheduler sees of each backend, and what it decides.  Pure.

:func:`llmproxy.scheduling.placement.plan` makes the one into the other, and offers these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen

from llmproxy.scheduling.claims import NOTHING, Memory

__all__ = ["Leave", "Model", "Phase", "Place", "Plan", "Refuse", "Rules", "Start", "Wait"]

Phase = Literal["absent", "starting", "ready", "draining", "leaving", "asleep"]


@frozen
class Place:
    """One host that a model may start on.

    :ivar claim: GPU memory that it needs there.
    :ivar there: its container is there already.
    :ivar lacks: GPUs that it needs and the host has not.
    """

    host: str
    claim: Memory = NOTHING
    there: bool = False
    lacks: tuple[str, ...] = ()


@frozen
class Model:
    """One backend as the scheduler sees it.

    :ivar phase: ``starting`` is waking, too; ``leaving`` is stopping or falling asleep.
    :ivar claim: GPU memory that it needs to run.
    :ivar held: GPU memory that it has at present.
    :ivar rest: of ``held``, what it has when it has left (``draining``, ``leaving``).
    :ivar sleeps: levels of sleep that it offers.
    :ivar kept: GPU memory that it keeps asleep.
    :ivar host: bytes of host memory that its weights take when it sleeps at level 1.
    :ivar asleep_host: bytes of host memory that it takes at present.
    :ivar busy: something is in flight.
    :ivar served: it has served what it was started for, or nobody wants that any more.
    :ivar used_at: when it was last used.
    :ivar stays_until: until when it stays after a swap (``min_residency``).
    :ivar due: it shall leave by itself: ``idle`` (may sleep), ``stop``.
    :ivar leaves_as: how it leaves when it has drained, see :attr:`Leave.how`; empty: as is best then.
    :ivar reload: seconds of a cold start; ``wake``: from a sleep of each level.
    :ivar waiting: requests that wait for it; ``waiting_since``: the first of them.
    :ivar urgency: priority of its demand: its own and that of the most important key that waits.
    :ivar may_evict: one of those who wait may have others leave.
    :ivar at: the host that it is on, where there are several.
    :ivar places: the hosts that it may start on; none: its ``claim`` says all.
    :ivar route: what its successor is called, where it is configured no more.
    """

    name: str
    phase: Phase = "absent"
    claim: Memory = NOTHING
    held: Memory = NOTHING
    rest: Memory = NOTHING
    sleeps: tuple[int, ...] = ()
    kept: Memory = NOTHING
    host: int = 0
    asleep_host: int = 0
    busy: bool = False
    served: bool = True
    pinned: bool = False
    priority: int = 0
    used_at: float = 0.0
    stays_until: float = 0.0
    due: Literal["", "idle", "stop"] = ""
    leaves_as: str = ""
    reload: float = 60.0
    wake: Mapping[int, float] = field(factory=lambda: {1: 3.0, 2: 10.0})
    waiting: int = 0
    waiting_since: float = 0.0
    urgency: int = 0
    may_evict: bool = True
    at: str = ""
    places: tuple[Place, ...] = ()
    route: str = ""


@frozen
class Rules:
    """How demands are weighed (seconds, bytes).

    :ivar max_wait_before_drain: how long a demand waits for a busy model before that takes no new requests.
    :ivar host_memory: that sleepers may take together.
    :ivar lease_ends: when the memory that is lent on each GPU comes back.
    """

    max_wait_before_drain: float = 30.0
    host_memory: int = 0
    lease_ends: Mapping[str, float] = field(factory=dict)


@frozen
class Start:
    """Start it, or wake it, now.

    :ivar host: where, if it may be on several.
    """

    name: str
    why: str
    host: str = ""


@frozen
class Leave:
    """It leaves: now, or when it has drained.

    :ivar how: ``stop``, or a level of sleep: ``1``, ``2``.
    :ivar drain: it is busy: it takes no new requests from now on, and is looked at again when it is idle.
    :ivar whom: the demand that it leaves for; None: it leaves by itself.
    """

    name: str
    how: str
    why: str
    drain: bool = False
    whom: str | None = None


@frozen
class Wait:
    """It cannot start yet.

    :ivar on: the models that are in its way.
    """

    name: str
    why: str
    on: tuple[str, ...] = ()


@frozen
class Refuse:
    """It cannot start as things are, however long it waits.

    :ivar why: the sums.
    :ivar forbidden: only since nobody who waits may have others leave.
    :ivar until: when it could (POSIX seconds); None: not by itself.
    """

    name: str
    why: str
    forbidden: bool = False
    until: float | None = None


@frozen
class Plan:
    """What is to be done now.

    :ivar look_again: when time alone may change it; None: never.
    """

    starts: tuple[Start, ...] = ()
    leaves: tuple[Leave, ...] = ()
    waits: tuple[Wait, ...] = ()
    refusals: tuple[Refuse, ...] = ()
    look_again: float | None = None
