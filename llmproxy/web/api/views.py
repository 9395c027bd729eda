"""What the admin API shows: backends, leases, GPUs and plans as JSON."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from llmproxy.backend.backend import Backend
from llmproxy.backend.surroundings import Decision, Transition
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.snapshot import SUPPOSED_WAKE
from llmproxy.fleet.telling import GpuSum, Left, Story
from llmproxy.scheduling.claims import Room
from llmproxy.scheduling.learned import Estimate
from llmproxy.scheduling.leases import GpuLease
from llmproxy.scheduling.outlook import Plan

__all__ = [
    "backend_view",
    "estimate_of",
    "gpu_sums",
    "lease_view",
    "leaves_in",
    "plan_view",
    "story_of",
    "sum_view",
]


_WHOLE = "GPU {gpu}'s size is not known, so all of it is lent: lend a fraction, or set gpus.{gpu}.memory."


def leaves_in(backend: Backend, now: float) -> float | None:
    """Seconds until it leaves if nobody uses it; None when it does not by itself."""
    if backend.spec.pinned:
        return None
    if backend.state == "sleeping":
        limit = backend.spec.sleep_idle
        return max(0.0, backend.since + limit - now) if limit > 0 else None
    return backend.idle_in


def estimate_of(fleet: Fleet, backend: Backend) -> Estimate:
    """What is to be expected of it; of a wake: from the sleep that it is in, or would fall into."""
    asleep = backend.state in ("sleeping", "falling_asleep", "waking")
    level = backend.level if asleep else min(backend.needs.sleep, default=1)
    found = fleet.learned.estimate(backend.name, backend.fingerprint, level)
    if "wake_seconds" in found.measured:
        return found
    # As the scheduler supposes it, too.
    return evolve(found, wake_seconds=min(found.wake_seconds, found.reload_seconds * SUPPOSED_WAKE[level]))


def _estimate_view(fleet: Fleet, backend: Backend) -> dict[str, Any]:
    found = estimate_of(fleet, backend)
    sleeps = bool(backend.needs.sleep)
    return {
        "start": found.reload_seconds,
        "wake": found.wake_seconds if sleeps else None,
        "sleep": found.sleep_seconds if sleeps else None,
        "stop": found.stop_seconds,
        "phases": dict(found.phases),
        "measured": sorted(
            name.removesuffix("_seconds").replace("reload", "start")
            for name in found.measured
            if name.endswith("_seconds")
        ),
    }


def _wait_view(fleet: Fleet, backend: Backend) -> dict[str, Any] | None:
    wait = fleet.scheduler.waits(backend.name)
    if wait is None:
        return None
    return {"why": wait.why, "on": list(wait.on), "since": backend.wanted_since}


def _decision_view(decision: Decision | None, *, waits: bool) -> dict[str, Any] | None:
    if decision is None or (decision.kind == "wait" and not waits):
        # It waits no more, and was not told so.
        return None
    return {"kind": decision.kind, "reason": decision.reason, "for": decision.whom, "at": decision.at}


def _replicas_view(backend: Backend) -> dict[str, Any] | None:
    if not _runs_as_tasks(backend):
        return None
    # Few have a Swarm.
    from llmproxy.web.api.tasks import tasks_view

    return tasks_view(backend)


def _runs_as_tasks(backend: Backend) -> bool:
    return backend.spec.runtime == "swarm"


def backend_view(fleet: Fleet, backend: Backend, now: float) -> dict[str, Any]:
    """One backend as ``/api/backends/<name>`` shows it.

    :param now: POSIX seconds.
    """
    start, failure, address, needs = backend.last_start, backend.last_failure, backend.address, backend.needs
    instance, unfit, waits = backend.instance, backend.wishes.unfit, _wait_view(fleet, backend)
    known = backend.forecast()
    reason = None if known.reason is None else backend.redacted(known.reason)
    return {
        "name": backend.name,
        "route": backend.name,
        "runtime": backend.spec.runtime,
        "engine": backend.spec.engine,
        "state": backend.state,
        "level": backend.level if backend.state in ("falling_asleep", "sleeping", "waking") else None,
        "since": backend.since,
        "phase": known.phase,
        "phase_since": known.since,
        "progress": known.progress,
        "eta": known.eta,
        "reason": reason,
        "address": None if address is None else str(address),
        "via": None if address is None else address.via,
        "in_flight": backend.admission.in_flight,
        "waiting": backend.admission.waiting,
        "waits": waits,
        "models": list(backend.models),
        "container": backend.spec.container,
        "host": fleet.scheduler.places.at(backend) or None,
        "service": backend.spec.service,
        "replicas": _replicas_view(backend),
        "run": None if instance is None else instance.run,
        "needs": {
            "gpus": list(fleet.scheduler.places.gpus(backend)),
            "memory": needs.memory,
            "sleep": list(needs.sleep),
            "why": needs.why,
            "remarks": list(needs.remarks),
        },
        "pinned": backend.spec.pinned,
        "priority": backend.spec.priority,
        "estimate": _estimate_view(fleet, backend),
        "decision": _decision_view(fleet.scheduler.decided(backend.name), waits=waits is not None),
        "refused": None if unfit is None else unfit.message,
        "last_start": None
        if start is None
        else {"seconds": start.seconds, "at": start.at, "phases": start.phases},
        "last_failure": None
        if failure is None
        else {
            "message": failure.message,
            "hint": failure.hint,
            "exit_code": failure.exit_code,
            "oom": failure.oom,
            "at": backend.last_failure_at,
            "log_tail": failure.log_tail,
        },
        "idle_in": leaves_in(backend, now),
        "retry_in": backend.retry_in,
    }


def lease_view(fleet: Fleet, lease: GpuLease) -> dict[str, Any]:
    """One lease of GPU memory; ``waits`` says what is in its way while it is not held yet."""
    wait = fleet.scheduler.waits(lease.name)
    room = fleet.scheduler.rooms()[lease.gpu] if fleet.scheduler.leases.get(lease.name) else Room(known=True)
    whole = isinstance(lease.memory, int) and not room.known
    return {
        "id": lease.name,
        "gpu": lease.gpu,
        "memory": lease.memory,
        "note": lease.note,
        "held": lease.held,
        "since": lease.since,
        "until": lease.until,
        "waits": None if wait is None or lease.held else {"why": wait.why, "on": list(wait.on)},
        "remark": _WHOLE.format(gpu=lease.gpu) if whole else None,
    }


def gpu_sums(fleet: Fleet) -> list[GpuSum]:
    """Who has the memory of each GPU that counts."""
    scheduler = fleet.scheduler
    rooms = scheduler.rooms(fleet.backends.values())
    models = scheduler.models(rooms)
    return [
        GpuSum(gpu, room, {model.name: model.held[gpu] for model in models if model.held.get(gpu)})
        for gpu, room in rooms.items()
    ]


def _amount(room: Room, units: int) -> float | int:
    """Bytes, or a fraction of a GPU whose size is not known."""
    return units if room.known else round(units / room.total, 6)


def sum_view(fleet: Fleet, one: GpuSum, measured: tuple[int | None, int | None]) -> dict[str, Any]:
    """One GPU.

    :param measured: bytes in all, and bytes that nobody has taken, as a meter reads them.
    """
    room, backends = one.room, fleet.backends
    claims = [
        {
            "name": name,
            "state": backends[name].state if name in backends else None,
            "memory": _amount(room, units),
        }
        for name, units in one.held.items()
    ]
    total, free = measured
    return {
        "gpu": one.gpu,
        "unit": "bytes" if room.known else "fraction",
        "total": _amount(room, room.total),
        "reserve": _amount(room, room.reserve),
        "lent": _amount(room, room.leased),
        "claimed": _amount(room, sum(one.held.values())),
        "unclaimed": _amount(room, one.free),
        "claims": claims,
        "leases": [lease.name for lease in fleet.scheduler.leases if lease.gpu == one.gpu and lease.held],
        "measured": None if free is None else {"total": total, "free": free},
    }


def plan_view(found: Plan) -> dict[str, Any]:
    """A plan, step by step."""
    return {
        "starts": [
            {"name": start.name, "why": start.why, "host": start.host or None} for start in found.starts
        ],
        "leaves": [
            {
                "name": leave.name,
                "how": leave.how,
                "drain": leave.drain,
                "for": leave.whom,
                "why": leave.why,
            }
            for leave in found.leaves
        ],
        "waits": [{"name": wait.name, "on": list(wait.on), "why": wait.why} for wait in found.waits],
        "refusals": [
            {
                "name": refuse.name,
                "why": refuse.why,
                "forbidden": refuse.forbidden,
                "until": refuse.until,
            }
            for refuse in found.refusals
        ],
        "look_again": found.look_again,
    }


def _stays_until(backend: Backend) -> float:
    return backend.since + backend.spec.min_residency if backend.wishes.swapped_in else 0.0


def story_of(fleet: Fleet, backend: Backend, now: float) -> Story:
    """All that is known of why it is as it is."""
    scheduler, refusal, known = fleet.scheduler, backend.refusal, backend.forecast()
    wait, since = scheduler.waits(backend.name), backend.wanted_since
    ahead = () if wait is None else tuple(fleet.backends[name] for name in wait.on if name in fleet.backends)
    stays = [_stays_until(one) for one in ahead if one.state == "ready" and one.gate.busy]
    limit = fleet.config.scheduler.max_wait_before_drain
    story = Story(
        backend.name,
        backend.state,
        now,
        backend.since,
        backend.needs,
        estimate_of(fleet, backend),
        elsewhere=backend.spec.runtime == "url",
        phase=known.phase,
        progress=known.progress,
        eta=known.eta,
        awaited=backend.awaited,
        in_flight=backend.admission.in_flight,
        waiting=backend.admission.waiting,
        waiting_since=since,
        wait=wait,
        drain_at=max(since + limit, *stays) if stays and since is not None else None,
        refused="" if refusal is None else refusal.message,
        unfit="" if backend.wishes.unfit is None else backend.wishes.unfit.message,
        retry_in=backend.retry_in,
        pinned=backend.spec.pinned,
        stays_until=_stays_until(backend),
        leaves_in=leaves_in(backend, now),
        level=backend.level,
        gpus=[one for one in gpu_sums(fleet) if one.gpu in scheduler.places.gpus(backend)],
        host=scheduler.places.at(backend),
        away=scheduler.places.is_away(backend),
    )
    if _runs_as_tasks(backend):
        from llmproxy.web.api.tasks import tasks_told

        story = evolve(story, tasks=tasks_told(backend, fleet.events, now))
    return _with_past(fleet, story)


def _with_past(fleet: Fleet, story: Story) -> Story:
    """What the remembered events say of its last start and its last end."""
    name, whom = story.name, None
    making_room: list[str] = []
    for event in fleet.events:
        if isinstance(event, Decision):
            if event.kind in ("evict", "drain") and event.whom == name:
                making_room.append(event.backend)
            elif event.kind in ("evict", "drain") and event.backend == name:
                whom = event.whom
        elif event.backend != name:
            continue
        elif event.new in ("starting", "waking"):
            story = evolve(story, begun=event.reason, woken=event.new == "waking", made_room=making_room)
            making_room, whom = [], None
        elif _leaves(event):
            story = evolve(story, left=Left(event.at, event.reason, whom))
            whom = None
    return story


def _leaves(event: Transition) -> bool:
    """It runs, or sleeps, no more, or is about to: later steps have no reason of their own."""
    return event.new != "ready" and event.old in ("starting", "ready", "sleeping", "waking")
