"""Requests: each asks a backend as a real one does, and has its lease for as long as its answer takes."""

from __future__ import annotations

from array import array
from collections import Counter

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall

from bench.swarm.clock import Account, HeapClock
from bench.swarm.cluster import Cluster
from bench.swarm.demand import Demand
from llmproxy.backend.backend import Backend
from llmproxy.backend.gate import Lease
from llmproxy.errors import Refusal
from llmproxy.fleet.fleet import Fleet

__all__ = ["Tally", "Traffic", "Visit"]

PATIENCE = 600.0
"""Seconds that a client waits for its first byte at most: the openai package's default."""


@define
class Tally:
    """What became of requests.

    :ivar ends: how they ended: ``answered``, ``cut``, ``gave up``, or the code of a refusal.
    :ivar holds: seconds that each was held until it was handed over or gave up.
    :ivar cold: how many were held at all.
    """

    ends: Counter[str] = field(factory=Counter)
    holds: array[float] = field(factory=lambda: array("d"))
    cold: int = 0


class Visit:
    """One request."""

    __slots__ = ("_at", "_backend", "_end", "_lease", "_seconds", "_traffic")
    priority = 0
    may_evict = True

    def __init__(self, traffic: Traffic, backend: Backend, seconds: float) -> None:
        self._traffic = traffic
        self._backend = backend
        self._seconds = seconds
        self._at = traffic.clock.rightNow
        self._end: IDelayedCall | None = None
        self._lease: Lease | None = None

    def affinity(self) -> bytes | None:
        """Nothing in common with others, so that the task with the fewest in flight gets it."""
        return None

    def enter(self) -> None:
        """Ask for the backend."""
        account, clock = self._traffic.account, self._traffic.clock
        if account.inside("requests", self._backend.enter, self):
            self._traffic.tally.cold += 1
            self._end = clock.callLater(PATIENCE, self._give_up)

    def admitted(self, lease: Lease) -> None:
        before = self._traffic.account.switch("simulation")
        self._stop_waiting()
        self._lease = lease
        traffic = self._traffic
        traffic.tally.holds.append(traffic.clock.rightNow - self._at)
        self._end = traffic.clock.callLater(self._seconds, self._answered)
        traffic.account.switch(before)

    def _stop_waiting(self) -> None:
        if self._end is not None and self._end.active():
            self._end.cancel()

    def _answered(self) -> None:
        assert self._lease is not None
        task = self._traffic.swarm.hosts.get(self._lease.address.host)
        if task is not None and not task.reachable:
            return  # nobody says that it has gone; it is cut when that is noticed
        self._over("answered")

    def _over(self, end: str) -> None:
        self._traffic.tally.ends[end] += 1
        lease, self._lease = self._lease, None
        if lease is not None:
            self._traffic.account.inside("requests", lease.release)

    def cut(self, reason: str) -> None:
        self._stop_waiting()
        self._over("cut")

    def refused(self, refusal: Refusal) -> None:
        self._stop_waiting()
        self._traffic.tally.ends[refusal.code] += 1

    def handed_on(self, route: str | None) -> None:
        self._stop_waiting()
        self._traffic.tally.ends["handed on"] += 1

    def _give_up(self) -> None:
        self._traffic.tally.ends["gave up"] += 1
        self._traffic.tally.holds.append(PATIENCE)
        self._traffic.account.inside("requests", self._backend.leave, self)


class Traffic:
    """Has requests come by a demand."""

    def __init__(
        self, clock: HeapClock, account: Account, fleet: Fleet, swarm: Cluster, demand: Demand, drift: float
    ) -> None:
        self.clock = clock
        self.account = account
        self.swarm = swarm
        self.tally = Tally()
        self._fleet = fleet
        self._demand = demand
        self._drift = drift

    def begin(self) -> None:
        """From now on."""
        self._clock_next()
        if self._drift:
            self.clock.callLater(self._drift, self._drifts)

    def _clock_next(self) -> None:
        self.clock.callLater(self._demand.pause(), self._comes)

    def _comes(self) -> None:
        self._clock_next()
        backend = self._fleet.backends[self._demand.pick().name]
        Visit(self, backend, self._demand.seconds()).enter()

    def _drifts(self) -> None:
        self._demand.drift()
        self.clock.callLater(self._drift, self._drifts)
