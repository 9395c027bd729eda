"""What the scheduler thinks: ``.../why``, ``/api/plan``, ``/api/gpus`` and ``/api/advice``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict

from llmproxy.backend.backend import Backend
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.places import host_of_gpu
from llmproxy.fleet.telling import duration, ready_in, tell_plan, tell_why
from llmproxy.runtimes.gpus import AbsentMeter, IGpuMeter
from llmproxy.scheduling.advice import LEAST_DAYS, Advice, Present, advise
from llmproxy.scheduling.history import Entry
from llmproxy.web.api.answers import failed, in_thread
from llmproxy.web.api.views import backend_view, estimate_of, gpu_sums, plan_view, story_of, sum_view
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import answer_json

__all__ = ["show_advice", "show_gpus", "show_hosts", "show_plan", "show_why"]

DAY = 86400.0


def show_why(request: ProxyRequest, fleet: Fleet, backend: Backend) -> None:
    """Why it runs, waits or has left, in sentences."""
    now = request.site.clock.seconds()
    told = tell_why(story_of(fleet, backend, now))
    answer_json(request, 200, {"backend": backend_view(fleet, backend, now), "why": told})


def show_plan(request: ProxyRequest, fleet: Fleet, backend: Backend | None) -> None:
    """What is to be done now; with a backend: if somebody asked for that one at this moment."""
    now = request.site.clock.seconds()
    found = fleet.scheduler.plan(backend)
    asleep = frozenset(name for name, one in fleet.backends.items() if one.state == "sleeping")
    told = tell_plan(found, now, asleep=asleep)
    seconds: float | None = None
    if backend is None:
        told = told or ["Nothing is to be done, and nobody waits for room."]
    elif backend.refusal is not None:
        told = [f"Requests to {backend.name} are refused at present: {backend.refusal.message}"]
    elif backend.state == "ready":
        seconds = 0.0
        told = [f"{backend.name} is ready: a request to it is answered at once.", *told]
    elif backend.state in ("starting", "waking"):
        seconds = backend.forecast().eta
        when = "" if seconds is None else f", and should be ready in about {duration(seconds)}"
        told = [f"{backend.name} is {backend.state} already{when}.", *told]
    else:
        estimates = {name: estimate_of(fleet, one) for name, one in fleet.backends.items()}
        seconds = ready_in(found, backend.name, estimates, asleep=backend.state == "sleeping")
        if seconds is not None:
            told.append(f"{backend.name} would be ready in about {duration(seconds)}.")
    name = None if backend is None else backend.name
    answer_json(request, 200, {"backend": name, "ready_in": seconds, "plan": plan_view(found), "told": told})


def show_gpus(request: ProxyRequest, fleet: Fleet) -> None:
    """Who has the memory of each GPU, and what of it is free as a meter reads it."""
    meter = fleet.scheduler.meter
    gpus = [one.gpu for one in gpu_sums(fleet)]

    def answer(measured: Mapping[str, tuple[int | None, int | None]]) -> None:
        views = [sum_view(fleet, one, measured.get(one.gpu, (None, None))) for one in gpu_sums(fleet)]
        reason = meter.reason if isinstance(meter, AbsentMeter) else None
        answer_json(request, 200, {"gpus": views, "not_measured": reason})

    # A reading waits for the driver's locks while a process is torn down.
    reading = in_thread(request, lambda: _measure(meter, gpus))
    reading.addCallback(answer).addErrback(failed, request)


def _measure(meter: IGpuMeter, gpus: list[str]) -> dict[str, tuple[int | None, int | None]]:
    return {gpu: (meter.total(gpu), meter.free(gpu)) for gpu in gpus}


def show_hosts(request: ProxyRequest, fleet: Fleet) -> None:
    """The machines that backends run on, where there are several."""
    places = fleet.scheduler.places
    gpus = fleet.scheduler.rooms(fleet.backends.values())
    on: dict[str, list[str]] = {}
    for name, backend in fleet.backends.items():
        on.setdefault(places.at(backend), []).append(name)
    views = [
        {
            "name": host.name,
            "engine": host.engine,
            "away": host.away or None,
            "expected": host.expected,
            "backends": on.get(host.name, []),
            "gpus": [gpu for gpu in gpus if host_of_gpu(gpu) == host.name],
        }
        for host in fleet.hosts()
    ]
    answer_json(request, 200, {"hosts": views})


def show_advice(request: ProxyRequest, fleet: Fleet) -> None:
    """Which settings would have spared starts, by what has been recorded; takes up to a second."""
    entries = fleet.history.entries
    present, capacities = _present(fleet), _capacities(fleet)

    def answer(found: list[Advice]) -> None:
        advice = [{**asdict(one), "per_day": one.per_day, "told": str(one)} for one in found]
        days = _days(entries, present)
        answer_json(request, 200, {"days": days, "advice": advice, "told": _why_none(found, days)})

    advising = in_thread(request, lambda: advise(entries, present, capacities))
    advising.addCallback(answer).addErrback(failed, request)


def _days(entries: tuple[Entry, ...], present: Mapping[str, Present]) -> float:
    known = [entry for entry in entries if entry.backend in present]
    if not known:
        return 0.0
    return (max(entry.until for entry in known) - known[0].at) / DAY


def _why_none(found: list[Advice], days: float) -> str | None:
    if found:
        return None
    if days < LEAST_DAYS:
        least = duration(LEAST_DAYS * DAY)
        return f"The record spans {duration(days * DAY)}; advice needs at least {least} of it."
    return f"Nothing would have been better in the {days:.1f} days of the record."


def _present(fleet: Fleet) -> dict[str, Present]:
    rooms = fleet.scheduler.rooms(fleet.backends.values())
    return {name: _settings(fleet, one, rooms) for name, one in fleet.backends.items()}


def _settings(fleet: Fleet, backend: Backend, rooms: Mapping[str, Any]) -> Present:
    needs, found = backend.needs, estimate_of(fleet, backend)
    return Present(
        backend.spec.idle,
        {gpu: float(rooms[gpu].units(needs.memory)) for gpu in fleet.scheduler.places.gpus(backend)},
        backend.spec.pinned,
        backend.spec.priority,
        found.wake_seconds if needs.sleep else found.reload_seconds,
    )


def _capacities(fleet: Fleet) -> dict[str, float]:
    """What models may have of each GPU; what is lent at present comes back."""
    rooms = fleet.scheduler.rooms(fleet.backends.values())
    return {gpu: float(room.total - room.reserve) for gpu, room in rooms.items()}
