"""From the fleet as it is to what the placement looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llmproxy.backend.conduct import Conduct
from llmproxy.backend.effects import State
from llmproxy.config.model import Config, Gpu
from llmproxy.fleet.places import Places
from llmproxy.scheduling.claims import NOTHING, SHARES, Memory, Room
from llmproxy.scheduling.learned import Learned
from llmproxy.scheduling.leases import GpuLease
from llmproxy.scheduling.outlook import Model, Phase, Place

__all__ = ["SUPPOSED_WAKE", "lease_model", "model_of", "rooms_for"]

_PHASES: Mapping[State, Phase] = {
    "absent": "absent",
    "failed": "absent",
    "starting": "starting",
    "waking": "starting",
    "ready": "ready",
    "draining": "draining",
    "stopping": "leaving",
    "falling_asleep": "leaving",
    "sleeping": "asleep",
}

SUPPOSED = 24 * 2**30
"""Bytes of a GPU whose size nobody has told, where something is known in bytes alone: as a consumer's has."""

SUPPOSED_WAKE = {1: 0.1, 2: 0.5}
"""Part of a start that an unseen wake takes at most: weights come from the host's memory at level
1, and from the disk, as in a start, at level 2."""

LEASE_URGENCY = 1000
"""A person waits for a lease: it goes before every model."""


def rooms_for(
    gpus: Iterable[str], config: Config, totals: Mapping[str, int | None], leases: Iterable[GpuLease]
) -> dict[str, Room]:
    """The memory of these GPUs.

    :param totals: bytes, where they were measured.  What the operator says counts more.
    """
    rooms = {}
    known = config.all_gpus
    for gpu in gpus:
        told = known.get(gpu, Gpu())
        total = told.memory or totals.get(gpu)
        room = Room(total or SHARES, told.reserve if total else 0, known=total is not None)
        lent = sum(room.units(lease.memory) for lease in leases if lease.gpu == gpu and lease.held)
        rooms[gpu] = Room(room.total, room.reserve, min(lent, room.total), room.known)
    return rooms


def _spread(gpus: Iterable[str], units: Mapping[str, int]) -> Memory:
    return {gpu: units[gpu] for gpu in gpus}


def model_of(
    backend: Conduct,
    name: str,
    rooms: Mapping[str, Room],
    learned: Learned,
    places: Places,
    *,
    granted: bool,
) -> Model:
    """One backend as the scheduler sees it.

    :param places: on which hosts it is, and may be.
    :param granted: its start has been decided on, and has not begun yet.
    """
    spec, needs, admission = backend.spec, backend.needs, backend.admission
    estimate = learned.estimate(backend.name, backend.fingerprint)
    gpus = places.gpus(backend)
    claim = {gpu: rooms[gpu].units(needs.memory) for gpu in gpus}
    kept = {gpu: _kept(rooms[gpu], claim[gpu], estimate.kept_asleep) for gpu in gpus}
    phase: Phase = "starting" if granted else _PHASES[backend.state]
    host = sum(_bytes(rooms[gpu], claim[gpu]) for gpu in gpus)
    offered = places.offered(backend, rooms) if phase == "absent" else None
    waiting = admission.waiting
    since = admission.waiting_since
    if backend.wishes.run_since is not None and backend.state in (
        "absent",
        "sleeping",
        "draining",
        "stopping",
    ):
        waiting = max(1, waiting)
        since = backend.wishes.run_since if since is None else min(since, backend.wishes.run_since)
    asleep = backend.state == "sleeping" and not granted
    rest: Memory = NOTHING
    if backend.state == "falling_asleep" or (
        backend.state == "draining" and backend.wishes.leaves_as in ("1", "2")
    ):
        rest = kept
    return Model(
        name,
        route=backend.name,
        phase=phase,
        claim=_present_claim(claim, kept, offered, away=asleep and places.is_away(backend)),
        held=_held(backend, phase, claim, kept if asleep else claim),
        rest=rest,
        sleeps=needs.sleep,
        kept=kept,
        host=host,
        asleep_host=host if backend.state in ("sleeping", "falling_asleep") and backend.level == 1 else 0,
        busy=backend.gate.busy,
        served=not (backend.awaited and backend.gate.unused),
        # A pin is against other models and time, not against the operator.
        pinned=spec.pinned and backend.wishes.sleep is None and backend.wishes.stop is None,
        priority=spec.priority,
        used_at=backend.gate.used_at,
        stays_until=backend.since + spec.min_residency if backend.wishes.swapped_in else 0.0,
        due="stop" if backend.wishes.stop is not None else "idle" if backend.due else "",
        leaves_as=backend.wishes.leaves_as if backend.state == "draining" else "",
        reload=estimate.reload_seconds,
        wake={level: _wake_seconds(backend, level, learned) for level in needs.sleep},
        waiting=waiting if backend.state not in ("failed", "ready") else 0,
        waiting_since=since or 0.0,
        urgency=spec.priority + admission.urgency,
        may_evict=admission.may_evict or backend.wishes.run_since is not None,
        at=places.at(backend),
        places=offered or (),
    )


def _present_claim(claim: Memory, kept: Memory, offered: Sequence[Place] | None, *, away: bool) -> Memory:
    """Nothing more where no host is there: it is found out at once that it cannot start, and nobody leaves
    for that."""
    if away:
        return kept
    return NOTHING if offered is not None and not offered else claim


def _held(backend: Conduct, phase: Phase, claim: Memory, usual: Memory) -> Memory:
    if phase == "absent":
        # It may run although nobody has said so; it is in nobody's way but the others'.
        return claim if backend.unsure else NOTHING
    return claim if backend.half_awake else usual


def _wake_seconds(backend: Conduct, level: int, learned: Learned) -> float:
    """As measured; before that, less than a start takes: else nobody would ever be put to sleep."""
    estimate = learned.estimate(backend.name, backend.fingerprint, level)
    if "wake_seconds" in estimate.measured:
        return estimate.wake_seconds
    return min(estimate.wake_seconds, estimate.reload_seconds * SUPPOSED_WAKE[level])


def _bytes(room: Room, units: int) -> int:
    """Units in bytes, for what is not kept on a GPU."""
    return units if room.known else int(units / room.total * SUPPOSED)


def _kept(room: Room, claim: int, measured: int) -> int:
    """What a sleeper keeps of its claim, in units."""
    return min(claim, measured if room.known else int(measured / SUPPOSED * room.total))


def lease_model(lease: GpuLease, rooms: Mapping[str, Room]) -> Model:
    """A lease that has not got its memory yet, as a demand."""
    return Model(
        lease.name,
        claim={lease.gpu: rooms[lease.gpu].units(lease.memory)},
        waiting=1,
        waiting_since=lease.since,
        urgency=LEASE_URGENCY,
    )
