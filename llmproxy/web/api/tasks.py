"""What the admin API shows of backends that run as several tasks; loaded where there is one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmproxy.backend.backend import Backend
from llmproxy.backend.surroundings import Decision, Event
from llmproxy.fleet.telling_tasks import Scaled, Tally, tell_tasks
from llmproxy.web.scaling import wanted_of

__all__ = ["last_scaling", "tasks_told", "tasks_view"]


def _tally(backend: Backend, scaled: Scaled | None = None) -> Tally:
    known = backend.replication
    states: tuple[str, ...] = ()
    pending = ""
    if known is not None:
        states, pending = tuple(task.state for task in known.tasks), known.pending
    elif backend.state == "starting":
        # Its first task has yet to be placed.
        pending = backend.forecast().reason or ""
    return Tally(backend.spec.replicas, wanted_of(backend), states, backend.redacted(pending), scaled)


def tasks_view(backend: Backend) -> dict[str, Any]:
    """Its tasks, and how many there shall be."""
    tally, known = _tally(backend), backend.replication
    return {
        "min": tally.settings.min,
        "max": tally.settings.max,
        "target_in_flight": tally.settings.target_in_flight,
        "wanted": tally.wanted,
        "ready": tally.states.count("ready"),
        "pending": tally.pending or None,
        "tasks": [
            {
                "id": task.id,
                "node": task.node,
                "state": task.state,
                "address": str(task.address),
                "in_flight": task.in_flight,
            }
            for task in (() if known is None else known.tasks)
        ],
    }


def last_scaling(events: Iterable[Event], name: str) -> Scaled | None:
    """The last of these decisions about it.

    :param events: those that are remembered, oldest first.
    """
    found = None
    for event in events:
        if isinstance(event, Decision) and event.backend == name and event.kind.startswith("scale "):
            found = Scaled(event.at, "out" if event.kind == "scale out" else "in", event.reason)
    return found


def tasks_told(backend: Backend, events: Iterable[Event], now: float) -> list[str]:
    """The same in sentences, with when it was scaled last, and why.

    :param now: POSIX seconds.
    """
    return tell_tasks(_tally(backend, last_scaling(events, backend.name)), now)
