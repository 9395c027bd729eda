"""``/api/leases``: GPU memory that is lent to something else for a while."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmproxy.config.units import DURATION_ALLOWED, duration, format_duration, fraction_or_size
from llmproxy.errors import does_not_fit, invalid_request
from llmproxy.fleet.fleet import Fleet
from llmproxy.http.openai import parse_body
from llmproxy.scheduling.leases import LONGEST, GpuLease
from llmproxy.web.api.answers import conflict, flag, not_found, short_body
from llmproxy.web.api.until import Waiting
from llmproxy.web.api.views import lease_view
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import answer_json

__all__ = ["end_lease", "show_lease", "show_leases", "take_lease"]

LONGEST_NOTE = 200
"""Characters of a note: it is for a person, and goes into every list."""

SHORTEST = 1.0
"""Seconds that a lease is for at least: none shall end while it is taken."""

MOST_LEASES = 100
"""Leases at once: each is looked at with every decision."""

_MEMORY_ALLOWED = "a fraction of the GPU from 0 to 1, a percentage such as 50%, or a size such as 16GiB"
_FIELDS = ("gpu", "memory", "seconds", "note")


def show_leases(request: ProxyRequest, fleet: Fleet) -> None:
    """All of them."""
    views = [lease_view(fleet, lease) for lease in fleet.scheduler.leases]
    answer_json(request, 200, {"leases": views})


def show_lease(request: ProxyRequest, fleet: Fleet, waiting: Waiting, name: str) -> None:
    """One of them; with ``wait=1`` when its memory is free for it."""
    lease = _lease(fleet, name)
    if flag(request, b"wait"):
        _wait(request, fleet, waiting, lease, 200)
    else:
        answer_json(request, 200, lease_view(fleet, lease))


def end_lease(request: ProxyRequest, fleet: Fleet, name: str) -> None:
    """End it before its time."""
    lease = _lease(fleet, name)
    view = lease_view(fleet, lease)
    fleet.scheduler.release(name)
    answer_json(request, 200, {**view, "held": False, "waits": None})


def take_lease(request: ProxyRequest, fleet: Fleet, waiting: Waiting) -> None:
    """Lend memory; with ``wait=1`` it is answered when that is free.

    :raises llmproxy.errors.Refusal: ``invalid_request``; ``does_not_fit``: it could never be had.
    """
    asked = parse_body(short_body(request))
    unknown = sorted(set(asked) - set(_FIELDS))
    if unknown:
        raise invalid_request(f"{unknown[0]!r} is not known; use {', '.join(_FIELDS)}.", param=unknown[0])
    gpu, memory = _gpu(asked, fleet), _memory(asked)
    seconds, note = _seconds(asked), _note(asked)
    if len(list(fleet.scheduler.leases)) >= MOST_LEASES:
        raise conflict(f"There are {MOST_LEASES} leases already.", "End one: llmproxy release ID.")
    lease = fleet.scheduler.lease(gpu, memory, seconds, note)
    if flag(request, b"wait"):
        _wait(request, fleet, waiting, lease, 201)
    else:
        answer_json(request, 201, lease_view(fleet, lease))


def _wait(request: ProxyRequest, fleet: Fleet, waiting: Waiting, lease: GpuLease, status: int) -> None:
    scheduler = fleet.scheduler

    def over() -> bool:
        return lease.held or scheduler.leases.get(lease.name) is not lease

    def answer(_: object) -> None:
        if scheduler.leases.get(lease.name) is lease:
            answer_json(request, status, lease_view(fleet, lease))
            return
        decided = scheduler.decided(lease.name)
        why = decided.reason if decided is not None and decided.kind == "refuse" else "it was released"
        request.refuse(does_not_fit(lease.name, why, retry_after=None))

    held = waiting.until(request.site.clock, lease.name, over)
    request.when_gone = held.cancel
    held.addBoth(answer)


def _lease(fleet: Fleet, name: str) -> GpuLease:
    lease = fleet.scheduler.leases.get(name)
    if lease is None:
        known = ", ".join(lease.name for lease in fleet.scheduler.leases) or "none"
        raise not_found(f"There is no lease {name!r}. Leases: {known}.")
    return lease


def _gpu(asked: Mapping[str, Any], fleet: Fleet) -> str:
    gpu = asked.get("gpu", "0")
    known = sorted(fleet.scheduler.rooms(fleet.backends.values()))
    if not isinstance(gpu, str) or gpu not in known:
        listed = ", ".join(known) or "none is known: no backend needs GPU memory"
        raise invalid_request(f"gpu is {gpu!r}; use one that backends use: {listed}.", param="gpu")
    return gpu


def _memory(asked: Mapping[str, Any]) -> float | int:
    given = asked.get("memory")
    percent = (
        re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%\s*", given) if isinstance(given, str) else None
    )
    try:
        memory = fraction_or_size(float(percent[1]) / 100 if percent else given)
    except ValueError:
        memory = 0
    if not memory:
        raise invalid_request(f"memory is {given!r}; use {_MEMORY_ALLOWED}.", param="memory")
    return memory


def _seconds(asked: Mapping[str, Any]) -> float:
    given = asked.get("seconds")
    try:
        seconds = duration(given)
    except ValueError:
        seconds = 0.0
    if not SHORTEST <= seconds <= LONGEST:
        raise invalid_request(
            f"seconds is {given!r}; use {DURATION_ALLOWED}, from {format_duration(SHORTEST)} to"
            f" {format_duration(LONGEST)}.",
            param="seconds",
            hint="What is wanted for longer is a reserve: gpus.<gpu>.reserve in llmproxy.yaml.",
        )
    return seconds


def _note(asked: Mapping[str, Any]) -> str:
    note = asked.get("note", "")
    if not isinstance(note, str) or len(note) > LONGEST_NOTE or not note.isprintable():
        raise invalid_request(f"note must be one line of up to {LONGEST_NOTE} characters.", param="note")
    return note
