"""Makes room in a cluster that is full: has idle backends leave nodes where a pending task then fits.

The managers of a Swarm place tasks, and end nothing for them; see :mod:`llmproxy.scheduling.pressure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.backend.backend import Backend
from llmproxy.runtimes.interface import ICluster, Reservations, RuntimeUnavailable
from llmproxy.scheduling.learned import Learned
from llmproxy.scheduling.outlook import Leave
from llmproxy.scheduling.pressure import Relief, Stuck, Tenant, relieve
from llmproxy.scheduling.replicas import OTHERS_SEEN

__all__ = ["AFTER", "LOOK_EVERY", "Pressure"]

LOOK_EVERY = 1.0
"""Seconds between looks; where nothing is pending a look costs nothing."""

AFTER = 2.0
"""Seconds for which a task is pending until room is made for it: a node may just be becoming free."""


class Evicts(Protocol):
    """What is asked of the scheduler."""

    @property
    def frozen(self) -> bool:
        """It decides nothing for now."""

    def evict(self, leave: Leave) -> None:
        """Have that one leave."""


@define(eq=False)
class Pressure:
    """Of one cluster.

    :ivar backends: those that are on it, by name.
    :ivar max_wait: seconds that a task is pending before busy backends are drained for it.
    """

    _clock: IReactorTime
    _cluster: ICluster
    _scheduler: Evicts
    _learned: Learned
    backends: Callable[[], Mapping[str, Backend]]
    max_wait: Callable[[], float]
    _next: IDelayedCall | None = field(default=None, init=False)
    _asking: Deferred[None] | None = field(default=None, init=False)
    _log = Logger()

    def start(self) -> None:
        """Begin to look."""
        self._next = self._clock.callLater(LOOK_EVERY, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    def _look(self) -> None:
        self._next = self._clock.callLater(LOOK_EVERY, self._look)
        if self._asking is not None or self._scheduler.frozen or not any(self._pending()):
            return
        asking = self._cluster.reservations().addCallback(self._relieve)
        self._asking = asking

        def over(_: object) -> None:
            self._asking = None

        asking.addErrback(self._not_asked).addBoth(over)

    def _not_asked(self, failure: Failure) -> None:
        # Cancelled at the end; a manager that is away finds no nodes either.
        if failure.check(RuntimeUnavailable) is None and self._next is not None and self._next.active():
            self._log.failure("making room in the cluster", failure)

    def _pending(self) -> Iterator[tuple[Backend, float]]:
        """Backends that wait for a node, and since when."""
        now = self._clock.seconds()
        for backend in self.backends().values():
            if backend.state != "starting" or backend.replication is not None:
                continue
            known = backend.forecast()
            if known.phase == "placing" and known.since is not None and now - known.since >= AFTER:
                yield backend, known.since

    def _relieve(self, found: Reservations) -> None:
        if self._scheduler.frozen:
            return
        now = self._clock.seconds()
        stuck, names = [], {}
        for backend, since in self._pending():
            service = self._cluster.service_of(backend.spec)
            needs = found.needs.get(service)
            # What reserves nothing is not pending for want of room.
            if needs:
                stuck.append(Stuck(backend.name, needs, since, found.allowed.get(service)))
        for backend in self.backends().values():
            names[self._cluster.service_of(backend.spec)] = backend
        tenants = [
            self._tenant(names.get(service), service, node, _times(found.needs[service], count), now)
            for service, nodes in found.taken.items()
            for node, count in nodes.items()
        ]
        for relief in relieve(stuck, tenants, found.rooms, now, max_wait=self.max_wait()):
            self._evict(relief, now)

    def _tenant(
        self, backend: Backend | None, service: str, node: str, held: Mapping[str, int], now: float
    ) -> Tenant:
        if backend is None:
            # Somebody else's.
            return Tenant(service, node, held, 0.0, now, may_leave=False)
        spec, gate, instance = backend.spec, backend.gate, backend.instance
        used_at = None if instance is None else instance.used_at
        elsewhere = used_at is not None and now - used_at < OTHERS_SEEN
        waited_for = backend.awaited and gate.unused
        stays = backend.wishes.swapped_in and now < backend.since + spec.min_residency
        wanted = spec.pinned or spec.replicas.min > 0 or backend.wishes.run_since is not None
        return Tenant(
            backend.name,
            node,
            held,
            self._learned.estimate(backend.name, backend.fingerprint).reload_seconds,
            gate.used_at,
            spec.priority,
            backend.admission.in_flight + elsewhere,
            may_leave=backend.state == "ready" and not (waited_for or stays or wanted),
            leaving=backend.state in ("draining", "stopping"),
        )

    def _evict(self, relief: Relief, now: float) -> None:
        backend = self.backends()[relief.name]
        # What another proxy has there is not seen to end, so that it is left alone.
        if relief.drain and not backend.gate.busy:
            return
        idle = "busy" if relief.drain else f"idle for {now - backend.gate.used_at:.0f} s"
        why = f"makes room for {relief.whom}, which fits on no node ({idle})"
        self._scheduler.evict(Leave(relief.name, "stop", why, drain=relief.drain, whom=relief.whom))


def _times(needs: Mapping[str, int], count: int) -> dict[str, int]:
    return {name: amount * count for name, amount in needs.items()}
