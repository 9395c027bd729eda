"""The gate of one backend: who waits before it, who is in flight behind it, and the connections there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llmproxy.backend.admission import Admission
from llmproxy.backend.replica import Replica, Roster
from llmproxy.errors import Refusal
from llmproxy.relay.pool import ConnectionPool
from llmproxy.runtimes.interface import Address

__all__ = ["SLICE", "Gate", "Lease", "Occupation", "Waiter"]

SLICE = 32
"""Requests that are handed over in one turn of the reactor.  Each costs 0.1 to 0.3 ms, so that thousands who
waited for one start would keep every other stream waiting for seconds."""


class Waiter(Protocol):
    """A request that asks for a backend; told exactly one of the first two, once."""

    @property
    def priority(self) -> int:
        """That of whoever asks: the higher goes first."""

    @property
    def may_evict(self) -> bool:
        """Whether another backend may have to leave for it."""

    def affinity(self) -> bytes | None:
        """What it has in common with others that are best served by the same task; None: nothing."""

    def admitted(self, lease: Lease) -> None:
        """It may go on; it must ``lease.release()`` when it is done."""

    def refused(self, refusal: Refusal) -> None:
        """It is not served."""

    def cut(self, reason: str) -> None:
        """Admitted before, and to be broken off now."""

    def handed_on(self, route: str | None) -> None:
        """Its backend is configured anew: it must enter the one of this route; None: there is none."""


@define(eq=False)
class Lease:
    """The right to one exchange with a backend; released once, through this object.

    :ivar replica: the one that answers.
    :ivar address: where it does.
    :ivar pool: connections to it.
    :ivar counted: it is a use of the backend: it has a place in flight and sets the idle clock back.
    """

    waiter: Waiter
    replica: Replica
    address: Address
    pool: ConnectionPool
    _gate: Gate
    counted: bool = True
    _released: bool = False

    @property
    def movable(self) -> bool:
        """Others may answer in its place: the backend runs as several tasks."""
        return self.counted and bool(self.replica.id)

    def release(self, *, suspicious: bool = False) -> None:
        """The exchange is over.

        :param suspicious: it ended in a way that a dead engine would explain, so ask for its health.
        """
        if not self._released:
            self._released = True
            self._gate._release(self, suspicious)


@define(eq=False)
class Occupation:
    """One exchange with a backend that another process carries; released once, through this object."""

    _gate: Gate
    _released: bool = False

    def release(self) -> None:
        """It is over."""
        if not self._released:
            self._released = True
            self._gate._one_less()


class Gate:
    """Holds requests while it is closed and hands them over when it opens.

    :param drained: called when nothing is in flight any more.
    :param suspected: called when an exchange ended as if the engine of that one were dead.
    :ivar busied: called when something is in flight again.
    :ivar roster: those that requests are handed to; empty while the gate is closed.
    :ivar used_at: when the last exchange that counts ended (reactor seconds).
    :ivar unused: nobody has gone through since it was opened.
    :ivar cuts: exchanges that count and were broken off, ever.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        admission: Admission[Waiter],
        drained: Callable[[], None],
        suspected: Callable[[Replica], None],
    ) -> None:
        self.admission = admission
        self.roster = Roster()
        self.busied: Callable[[], None] | None = None
        self.used_at = clock.seconds()
        self.unused = True
        self.cuts = 0
        self._clock = clock
        self._paused = False
        self._leases: set[Lease] = set()
        self._advancing = False
        self._next_slice: IDelayedCall | None = None
        self._drained = drained
        self._suspected = suspected

    @property
    def busy(self) -> bool:
        """Something is in flight that counts."""
        return self.admission.in_flight > 0

    @property
    def address(self) -> Address | None:
        """Where the backend answers, or one of its tasks; None while the gate is closed."""
        return next((replica.address for replica in self.roster.takers), None)

    def open(self, *replicas: Replica) -> None:
        """Hand over those who wait, and from now on every request at once."""
        self.roster.fill(replicas)
        self.used_at = self._clock.seconds()
        self.unused = True
        self._paused = False
        self._settle()

    def close(self) -> None:
        """Hand over no more; what is in flight goes on."""
        self.admission.open = False
        self._paused = False
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None
        for replica in self.roster:
            replica.pool.close()
        self.roster.fill(())

    # -- several tasks ------------------------------------------------------------------------------

    def join(self, replica: Replica) -> None:
        """Hand requests to this one, too."""
        self.roster.add(replica)
        self._settle()

    def rest(self, id: str, ailing: bool) -> None:
        """Hand that one nothing new as long as it is not well; what is in flight there goes on."""
        replica = self.roster.get(id)
        if replica is not None and replica.ailing is not ailing:
            replica.ailing = ailing
            self.roster.sort_out()
            self._settle()

    def spare(self, id: str, going: bool) -> None:
        """Hand that one nothing new as long as it is to leave, however well it is."""
        replica = self.roster.get(id)
        if replica is not None and replica.going is not going:
            replica.going = going
            self.roster.sort_out()
            self._settle()

    def lose(self, reason: str, *ids: str) -> None:
        """Those are gone: break off what is in flight there, also where the gate is closed."""
        # All of them before anything goes on, which would go on to the next one that is gone.
        for id in ids:
            replica = self.roster.remove(id)
            if replica is not None:
                replica.pool.close()
        self._settle()
        for lease in list(self._leases):
            if lease in self._leases and lease.replica.id in ids:
                lease.replica.lost = True
                self.cuts += lease.counted
                lease.waiter.cut(reason)

    def pause(self, paused: bool) -> None:
        """Hold whoever comes, though there are those that could answer; or do so no more."""
        self._paused = paused
        self._settle()

    def _settle(self) -> None:
        self.admission.open = bool(self.roster.takers) and not self._paused
        if self.admission.open:
            self.advance()

    def enter(self, waiter: Waiter, *, again: bool = False) -> bool:
        """Ask to go through.

        :param again: it had gone through before, and is not refused for want of places to wait at.
        :return: False when it has gone through at once; True when it is held.
        :raises llmproxy.errors.Refusal: too many are held.
        """
        if self.admission.enter():
            self._admit(waiter)
            return False
        now = self._clock.seconds()
        self.admission.hold(
            waiter, now, priority=waiter.priority, may_evict=waiter.may_evict, bounded=not again
        )
        return True

    def visit(self, waiter: Waiter) -> bool:
        """Go through if it is open, without being counted.

        :return: whether it was open.
        """
        if not self.roster.takers:
            return False
        replica = self.roster.choose(waiter.affinity)
        lease = Lease(waiter, replica, replica.address, replica.pool, self, counted=False)
        self._leases.add(lease)
        waiter.admitted(lease)
        return True

    def occupy(self) -> Occupation:
        """Count one more in flight, whatever state the backend is in: somebody else has brought it there."""
        self.admission.in_flight += 1
        if self.busied is not None and self.admission.in_flight == 1:
            self.busied()
        return Occupation(self)

    def advance(self) -> None:
        """Hand over as many as there is room for, in order and in slices."""
        # One that is over at once makes room in the middle of this; the loop goes on with that by itself.
        if self._advancing or self._next_slice is not None:
            return
        self._advancing = True
        try:
            for _ in range(SLICE):
                waiter = self.admission.next()
                if waiter is None:
                    return
                self._admit(waiter)
        finally:
            self._advancing = False
        # The gate may have been closed meanwhile, or all may have gone.
        if self.admission.open and self.admission.waiting:
            self._next_slice = self._clock.callLater(0, self._advance_on)

    def _advance_on(self) -> None:
        self._next_slice = None
        self.advance()

    def dismiss(self, tell: Callable[[Waiter], None]) -> None:
        """Nobody waits any more.

        :param tell: tells one of those who have waited.
        """
        for waiter in self.admission.dismiss():
            try:
                tell(waiter)
            except Exception:
                # A fault in one request must not cost the others their answer, or leave its backend half-way.
                self._log.failure("sending a request away")

    def cut(self, reason: str) -> None:
        """Break off everything that is in flight."""
        for lease in list(self._leases):
            self.cuts += lease.counted
            lease.waiter.cut(reason)

    def leases(self) -> list[Lease]:
        """What is in flight."""
        return list(self._leases)

    def _admit(self, waiter: Waiter) -> None:
        self.unused = False
        replica = self.roster.choose(waiter.affinity)
        replica.in_flight += 1
        lease = Lease(waiter, replica, replica.address, replica.pool, self)
        self._leases.add(lease)
        if self.busied is not None and self.admission.in_flight == 1:
            self.busied()
        try:
            waiter.admitted(lease)
        except Exception:
            # A fault in one request must neither stop the hand-over of the others nor keep its place.
            self._log.failure("handing a request over")
            lease.release()

    def _release(self, lease: Lease, suspicious: bool) -> None:
        self._leases.discard(lease)
        if suspicious:
            # Before anybody else is handed to it.
            self._suspected(lease.replica)
        if lease.counted:
            lease.replica.in_flight -= 1
            self._one_less()

    def _one_less(self) -> None:
        self.admission.release()
        self.used_at = self._clock.seconds()
        self.advance()
        if not self.busy:
            self._drained()
