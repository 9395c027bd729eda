"""What Prometheus is told of backends that run as several tasks; loaded when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmproxy.backend.backend import Backend
from llmproxy.web.family import Family

__all__ = ["tell_scaling", "wanted_of"]

_TASKS = (
    "Tasks of a backend that runs as several: wanted; and of those that run: ready, starting (not healthy"
    " yet), resting (nothing new for them) and leaving."
)
_SCALINGS = "Times that such a backend was to have one task more (out), or one fewer (in)."


def wanted_of(backend: Backend) -> int:
    """How many tasks there are to be at present."""
    known = backend.replication
    if known is not None:
        return known.wanted
    # The first of them has yet to be placed.
    return max(1, backend.spec.replicas.min) if backend.state == "starting" else 0


def tell_scaling(
    backends: Mapping[str, Backend], scalings: Mapping[tuple[str, str], int]
) -> Iterator[Family]:
    """What is so now, and what has happened.

    :param scalings: how often, by backend and direction.
    """
    tasks = Family("gauge", "llmproxy_tasks", _TASKS, ("backend", "state"))
    for name, backend in backends.items():
        if backend.spec.runtime != "swarm":
            continue
        known = backend.replication
        states = [] if known is None else [task.state for task in known.tasks]
        tasks.add((name, "wanted"), wanted_of(backend))
        for state in ("ready", "starting", "resting", "leaving"):
            tasks.add((name, state), states.count(state))
    yield tasks
    scaled = Family("counter", "llmproxy_scalings", _SCALINGS, ("backend", "direction"))
    for about, count in scalings.items():
        scaled.add(about, count)
    yield scaled
