"""What is done while tasks are pending: nothing, or idle ones are stopped for them, by one of two rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.swarm.clock import Account, HeapClock
from bench.swarm.cluster import Cluster, Service
from bench.swarm.runtime import RESOURCE
from llmproxy.backend.backend import Backend
from llmproxy.fleet.fleet import Fleet
from llmproxy.scheduling.outlook import Leave
from llmproxy.scheduling.pressure import Relief, Stuck, Tenant, relieve

__all__ = ["RULES", "Pressing"]

AGAIN = 1.0
"""Seconds between two looks at most while something is pending."""

Rule = Callable[[Sequence[Stuck], Sequence[Tenant], Mapping[str, Mapping[str, int]], float], Sequence[Relief]]


def longest_idle(
    stuck: Sequence[Stuck],
    tenants: Sequence[Tenant],
    rooms: Mapping[str, Mapping[str, int]],
    now: float,
) -> Sequence[Relief]:
    """The longest idle ones leave, wherever they are, until they are as large together as what is stuck."""
    owed = sum(one.needs[RESOURCE] for one in stuck)
    owed -= sum(tenant.held[RESOURCE] for tenant in tenants if tenant.leaving)
    found: dict[str, Relief] = {}
    for tenant in sorted(tenants, key=lambda one: one.used_at):
        if owed <= 0:
            break
        if tenant.may_leave and not tenant.leaving and not tenant.in_flight:
            found.setdefault(tenant.name, Relief(tenant.name, stuck[0].name))
            owed -= tenant.held[RESOURCE]
    return list(found.values())


def idle_only(
    stuck: Sequence[Stuck],
    tenants: Sequence[Tenant],
    rooms: Mapping[str, Mapping[str, int]],
    now: float,
) -> Sequence[Relief]:
    """llmproxy's own rule, but no busy one is drained, however long somebody waits."""
    return relieve(stuck, tenants, rooms, now, max_wait=float("inf"))


RULES: Mapping[str, Rule | None] = {
    "none": None,
    "longest": longest_idle,
    "idle": idle_only,
    "llmproxy": None,
}
"""``llmproxy``: what the fleet does by itself (:mod:`llmproxy.fleet.pressure`)."""


class Pressing:
    """Looks each second, while something is pending, at who could leave for it.

    :ivar evicted: how many were stopped for others; ``drained``: of those, how many were busy.
    """

    def __init__(self, clock: HeapClock, account: Account, fleet: Fleet, swarm: Cluster, rule: Rule) -> None:
        self.evicted = 0
        self.drained = 0
        self._clock = clock
        self._account = account
        self._fleet = fleet
        self._swarm = swarm
        self._rule = rule

    def begin(self) -> None:
        """From now on."""
        self._clock.callLater(AGAIN, self._look)

    def _look(self) -> None:
        self._clock.callLater(AGAIN, self._look)
        if self._swarm.pending:
            self._account.inside("pressure", self._relieve)

    def _relieve(self) -> None:
        stuck = [
            Stuck(task.service.name, {RESOURCE: task.service.model.room}, task.since)
            for task in self._swarm.pending.values()
            # What the proxy wants no more ends by itself.
            if self._fleet.backends[task.service.name].state in ("starting", "ready")
        ]
        if not stuck:
            return
        rooms = {node.name: {RESOURCE: node.room} for node in self._swarm.nodes if node.up}
        now = self._clock.rightNow
        for relief in self._rule(stuck, self._tenants(), rooms, now):
            backend = self._fleet.backends[relief.name]
            if backend.state != "ready" or backend.gate.busy is not relief.drain:
                continue
            self.evicted += 1
            self.drained += relief.drain
            self._fleet.backends[relief.whom].wishes.swapped_in = True
            why = f"makes room for {relief.whom}, which fits nowhere"
            backend.carry_out(Leave(relief.name, "stop", why, drain=relief.drain, whom=relief.whom))

    def _tenants(self) -> list[Tenant]:
        now = self._clock.rightNow
        found: list[Tenant] = []
        for service in self._swarm.services.values():
            if service.tasks:
                found += self._of(service, now)
        return found

    def _of(self, service: Service, now: float) -> Iterator[Tenant]:
        backend = self._fleet.backends[service.name]
        may_leave = self._may_leave(backend, now)
        reload = 0.0
        if may_leave:
            known = backend.surroundings.learned.estimate(service.name, backend.fingerprint)
            reload = known.reload_seconds
        leaving = backend.state in ("stopping", "draining")
        held = {RESOURCE: service.model.room}
        for task in service.tasks.values():
            if task.node is not None and task.node.up:
                yield Tenant(
                    service.name,
                    task.node.name,
                    held,
                    reload,
                    backend.gate.used_at,
                    in_flight=backend.admission.in_flight,
                    may_leave=may_leave,
                    leaving=leaving,
                )

    def _may_leave(self, backend: Backend, now: float) -> bool:
        served = not (backend.awaited and backend.gate.unused)
        stays_until = backend.since + backend.spec.min_residency if backend.wishes.swapped_in else 0.0
        return backend.state == "ready" and served and not backend.spec.pinned and stays_until <= now
