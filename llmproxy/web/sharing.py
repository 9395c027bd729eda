"""What Prometheus is told of models that share GPUs: evictions, wakes, and who has the memory."""

from __future__ import annotations

from collections.abc import Iterator

from llmproxy.backend.surroundings import Decision, Event, Transition
from llmproxy.fleet.fleet import Fleet
from llmproxy.scheduling.claims import Room
from llmproxy.web.family import Family
from llmproxy.web.histogram import Buckets, Histogram

__all__ = ["Sharing"]

_EVICTIONS = (
    "Times that the backend had to leave (stop or fall asleep) for something else, by reason: room (idle, for"
    " another model); drained (busy, for another model: it took no new requests and finished what it had);"
    " lease (for a lease of GPU memory)."
)
_CLAIMED = (
    "GPU memory that backends have claimed: bytes where the GPU's size is known, else a fraction of 1. It is"
    " what they may take, not what was measured."
)
_CAPACITY = (
    "GPU memory that backends may claim together: what the GPU has, less what is reserved or lent; in the"
    " unit of llmproxy_gpu_memory_claimed."
)

_HOSTS = "Whether the Docker engine of the host answers; only where there are several hosts."

_BUCKETS = Buckets(0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 7.5, 10, 20, 30, 60, 120)


class Sharing:
    """Follows a fleet, and is a :class:`~llmproxy.web.family.Collector`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._evictions: dict[tuple[str, str], int] = {}
        self._waking: dict[str, float] = {}
        self._wakes: dict[str, Histogram] = {}
        fleet.follow(self._heard)

    def _heard(self, event: Event) -> None:
        if isinstance(event, Transition):
            self._moved(event)
        elif event.kind in ("evict", "drain"):
            self._evicted(event)

    def _moved(self, step: Transition) -> None:
        if step.new == "waking":
            self._waking[step.backend] = step.at
            return
        begun = self._waking.pop(step.backend, None)
        if begun is not None and step.new == "ready":
            self._wakes.setdefault(step.backend, Histogram(_BUCKETS)).observe(step.at - begun)

    def _evicted(self, decision: Decision) -> None:
        # One that is configured no more, and has not ended yet, has a name that is made up.
        name = decision.backend.partition(" ")[0]
        if decision.whom not in self._fleet.backends:
            reason = "lease"
        else:
            reason = "drained" if decision.kind == "drain" else "room"
        self._evictions[name, reason] = self._evictions.get((name, reason), 0) + 1

    def collect(self) -> Iterator[Family]:
        """See :class:`~llmproxy.web.family.Collector`."""
        evictions = Family("counter", "llmproxy_evictions", _EVICTIONS, ("backend", "reason"))
        for about, count in self._evictions.items():
            evictions.add(about, count)
        yield evictions
        wakes = Family(
            "histogram", "llmproxy_wake_seconds", "Seconds of the wakes that succeeded.", ("backend",)
        )
        for name, histogram in self._wakes.items():
            wakes.add((name,), histogram)
        yield wakes
        yield self._waiting()
        yield from self._gpus()
        yield self._hosts()

    def _hosts(self) -> Family:
        hosts = Family("gauge", "llmproxy_host_up", _HOSTS, ("host",))
        for host in self._fleet.hosts():
            if host.expected:
                hosts.add((host.name,), 0 if host.away else 1)
        return hosts

    def _waiting(self) -> Family:
        waiting = Family(
            "gauge",
            "llmproxy_waiting_for_room",
            "Whether the backend is wanted and waits for room on its GPUs; only of those that need any.",
            ("backend",),
        )
        for name, backend in self._fleet.backends.items():
            if backend.needs.gpus:
                waiting.add((name,), 0 if self._fleet.scheduler.waits(name) is None else 1)
        return waiting

    def _gpus(self) -> Iterator[Family]:
        scheduler = self._fleet.scheduler
        rooms, held = scheduler.rooms(self._fleet.backends.values()), scheduler.claimed()
        claimed = Family("gauge", "llmproxy_gpu_memory_claimed", _CLAIMED, ("gpu",))
        capacity = Family("gauge", "llmproxy_gpu_memory_capacity", _CAPACITY, ("gpu",))
        for gpu, room in rooms.items():
            claimed.add((gpu,), _amount(room, held.get(gpu, 0)))
            capacity.add((gpu,), _amount(room, room.capacity))
        yield claimed
        yield capacity


def _amount(room: Room, units: int) -> float:
    return float(units) if room.known else units / room.total
