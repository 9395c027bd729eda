"""The gate with many before it: slices, order, and bounds."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.admission import Admission
from llmproxy.backend.gate import SLICE, Gate, Lease, Waiter
from llmproxy.backend.replica import Replica
from llmproxy.runtimes.interface import Address

HERE = Address("127.0.0.1", 1, "process")


class Pool:
    """No connections."""

    def close(self) -> None:
        """Nothing to close."""


class Crowd:
    """A gate, and those who wait before it by number."""

    def __init__(self, limit: int | None = None, *, brief: bool = False) -> None:
        self.clock = Clock()
        self.admission: Admission[Waiter] = Admission(10_000, limit)
        self.gate = Gate(self.clock, self.admission, lambda: None, lambda _: None)
        self.brief = brief
        self.gone: list[int] = []
        self.leases: list[Lease] = []
        self.most = 0

    def wait(self, count: int) -> list[Waiter]:
        waiters: list[Any] = [One(self, number) for number in range(count)]
        assert all(self.gate.enter(waiter) for waiter in waiters)
        return waiters

    def open(self) -> None:
        pool: Any = Pool()
        self.gate.open(Replica("", HERE, pool))


class One:
    """A request that writes down its turn; a brief one is over at once."""

    priority = 0
    may_evict = True

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd = crowd
        self.number = number

    def affinity(self) -> bytes | None:
        return None

    def admitted(self, lease: Lease) -> None:
        self.crowd.gone.append(self.number)
        self.crowd.most = max(self.crowd.most, self.crowd.admission.in_flight)
        if self.crowd.brief:
            lease.release()
        else:
            self.crowd.leases.append(lease)


class GateTests(SynchronousTestCase):
    """One gate, one story each."""

    def test_a_crowd_is_handed_over_in_slices_and_in_order(self) -> None:
        """One turn of the reactor takes a slice; whoever comes meanwhile stands behind the others."""
        crowd = Crowd()
        crowd.wait(3 * SLICE)
        crowd.open()
        self.assertEqual(crowd.gone, list(range(SLICE)))
        late: Any = One(crowd, 3 * SLICE)
        self.assertTrue(crowd.gate.enter(late))
        crowd.clock.advance(0)
        self.assertEqual(crowd.gone, list(range(3 * SLICE + 1)))
        self.assertEqual(crowd.clock.getDelayedCalls(), [])

    def test_a_gate_that_closes_between_slices_keeps_the_rest(self) -> None:
        """They wait for the next start, and no timer is left."""
        crowd = Crowd()
        crowd.wait(SLICE + 5)
        crowd.open()
        crowd.gate.close()
        crowd.clock.advance(1)
        self.assertEqual((len(crowd.gone), crowd.admission.waiting), (SLICE, 5))
        self.assertEqual(crowd.clock.getDelayedCalls(), [])
        crowd.open()
        self.assertEqual(crowd.gone, list(range(SLICE + 5)))

    def test_thousands_that_are_over_at_once_are_no_recursion(self) -> None:
        """Each makes room for the next one, and the loop goes on with that."""
        crowd = Crowd(1, brief=True)
        crowd.wait(5000)
        crowd.open()
        crowd.clock.advance(0)
        self.assertEqual(crowd.gone, list(range(5000)))


@given(
    st.integers(0, 3 * SLICE),
    st.none() | st.integers(1, SLICE + 2),
    st.booleans(),
    st.lists(st.integers(0, 3 * SLICE)),
    st.lists(st.integers(0, 100)),
)
def test_order_and_limit_hold(
    count: int, limit: int | None, brief: bool, leaving: list[int], ends: list[int]
) -> None:
    """Whoever leaves and whatever ends, those who stay go in order, and never more than allowed."""
    crowd = Crowd(limit, brief=brief)
    waiters = crowd.wait(count)
    for number in leaving:
        if number < count:
            crowd.admission.leave(waiters[number], 0.0)
    stay = [number for number in range(count) if number not in leaving]
    crowd.open()
    for index in ends:
        if crowd.leases:
            crowd.leases.pop(index % len(crowd.leases)).release()
    while crowd.admission.waiting:
        crowd.clock.advance(0)
        if crowd.leases:
            crowd.leases.pop().release()
    assert crowd.gone == stay
    assert limit is None or crowd.most <= limit


class Ends:
    """Connections that write down that they are closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Quiet(One):
    """A request that keeps its leases and writes down how it was broken off."""

    def __init__(self, crowd: Crowd, number: int = 0) -> None:
        super().__init__(crowd, number)
        self.cuts: list[str] = []

    def cut(self, reason: str) -> None:
        self.cuts.append(reason)
        for lease in self.crowd.leases:
            if id(lease.waiter) == id(self):
                lease.release()


class SeveralTests(SynchronousTestCase):
    """A gate with tasks behind it."""

    def setUp(self) -> None:
        self.crowd = Crowd()
        self.gate = self.crowd.gate
        self.told: list[str] = []
        self.gate._drained = lambda: self.told.append("drained")
        self.gate._suspected = lambda replica: self.told.append(f"suspected {replica.id}")
        self.gate.busied = lambda: self.told.append("busied")
        self.pools: dict[str, Any] = {id: Ends() for id in "ab"}
        self.a, self.b = (Replica(id, HERE, pool) for id, pool in self.pools.items())

    def request(self) -> Any:
        """One that does what it must of a :class:`Waiter`."""
        return Quiet(self.crowd)

    def ask(self) -> Quiet:
        waiter = self.request()
        self.gate.enter(waiter)
        found: Quiet = waiter
        return found

    def counts(self) -> tuple[int, int, int]:
        return self.a.in_flight, self.b.in_flight, self.crowd.admission.waiting

    def test_at_first_nothing_has_happened(self) -> None:
        """It is closed, unused, and has no address."""
        self.assertEqual((self.gate.unused, self.gate.cuts, self.gate.address), (True, 0, None))
        self.assertIs(self.gate.visit(self.request()), False)
        self.gate.open(self.a)
        self.assertEqual((self.gate.unused, self.gate.address), (True, HERE))
        self.ask()
        self.assertIs(self.gate.unused, False)
        self.gate.close()
        self.crowd.clock.advance(3)
        self.gate.open(self.a)
        self.assertEqual((self.gate.unused, self.gate.used_at), (True, 3.0))

    def test_each_request_goes_where_fewest_are_and_is_counted_there(self) -> None:
        """It gives its place back once, however often that is said."""
        self.gate.open(self.a, self.b)
        self.assertIs(self.gate.enter(self.request()), False)
        self.ask()
        self.assertEqual((self.counts(), self.told), ((1, 1, 0), ["busied"]))
        for lease in self.crowd.leases:
            lease.release()
            lease.release(suspicious=True)
        self.assertEqual((self.counts(), self.told), ((0, 0, 0), ["busied", "drained"]))
        self.assertEqual((self.gate.busy, self.gate.leases()), (False, []))

    def test_one_that_ended_as_if_its_engine_were_dead_is_suspected(self) -> None:
        """That very task, before anything else is told."""
        self.gate.open(self.a)
        self.ask()
        self.crowd.leases[0].release(suspicious=True)
        self.assertEqual(self.told, ["busied", "suspected a", "drained"])

    def test_who_only_looks_is_not_counted(self) -> None:
        """But is broken off like others, without being a loss."""
        self.gate.open(self.a)
        visitor = self.request()
        self.assertIs(self.gate.visit(visitor), True)
        self.assertEqual((self.counts(), self.gate.unused, len(self.gate.leases())), ((0, 0, 0), True, 1))
        self.gate.cut("over")
        self.assertEqual((visitor.cuts, self.gate.cuts, self.told), (["over"], 0, []))
        waiter = self.ask()
        self.gate.cut("over")
        self.assertEqual((waiter.cuts, self.gate.cuts), (["over"], 1))

    def test_one_that_rests_or_is_spared_gets_nothing_new(self) -> None:
        """Who comes waits where all of them rest; and goes on as soon as one of them does no more."""
        for still in (self.gate.rest, self.gate.spare):
            self.gate.open(self.a)
            still("nobody", True)
            still("a", False)
            still("a", True)
            waiting = self.crowd.admission.waiting
            self.ask()
            self.assertEqual((self.crowd.admission.waiting, self.crowd.admission.open), (waiting + 1, False))
            still("a", False)
            self.assertEqual((self.crowd.admission.waiting, self.crowd.admission.open), (0, True))

    def test_one_more_takes_those_who_wait(self) -> None:
        """At once."""
        self.ask()
        self.gate.join(self.a)
        self.assertEqual(self.counts(), (1, 0, 0))

    def test_a_pause_holds_whoever_comes(self) -> None:
        """Until it is over, or the gate is closed or opened anew."""

        def anew() -> None:
            self.gate.close()
            self.gate.join(self.a)

        for end in (lambda: self.gate.pause(False), anew):
            self.gate.open(self.a)
            self.gate.pause(True)
            self.ask()
            self.assertEqual(self.crowd.admission.waiting, 1)
            end()
            self.assertEqual(self.crowd.admission.waiting, 0)
        self.gate.pause(True)
        self.gate.open(self.a)
        self.assertTrue(self.crowd.admission.open)

    def test_those_that_are_lost_take_what_was_in_flight_there_with_them(self) -> None:
        """And nothing of others; their connections are closed."""
        self.gate.open(self.a, self.b)
        one, other = self.ask(), self.ask()
        self.gate.lose("gone", "a", "nobody")
        self.assertEqual(sorted([one.cuts, other.cuts]), [[], ["gone"]])
        self.assertEqual((self.a.lost, self.b.lost, self.gate.cuts), (True, False, 1))
        self.assertEqual([pool.closed for pool in self.pools.values()], [1, 0])
        self.gate.close()
        self.assertEqual([pool.closed for pool in self.pools.values()], [1, 1])
        self.assertEqual((len(self.gate.roster), self.crowd.admission.open), (0, False))

    def test_what_another_process_carries_is_counted_once(self) -> None:
        """It is busy as long as that lasts, whatever state it is in."""
        first, second = self.gate.occupy(), self.gate.occupy()
        self.assertEqual((self.crowd.admission.in_flight, self.told), (2, ["busied"]))
        for occupation in (first, first, second):
            occupation.release()
        self.assertEqual((self.crowd.admission.in_flight, self.told), (0, ["busied", "drained"]))
        self.gate.busied = None
        self.gate.occupy()
        self.assertEqual(self.crowd.admission.in_flight, 1)

    def test_a_fault_in_one_request_costs_no_other_its_turn(self) -> None:
        """It is logged, and its place is free again; so it is when those who wait are sent away."""

        def fail(_: object) -> None:
            raise ZeroDivisionError

        broken = self.request()
        self.patch(broken, "admitted", fail)
        self.gate.enter(broken)
        self.ask()
        self.gate.open(self.a)
        self.assertEqual((len(self.flushLoggedErrors(ZeroDivisionError)), self.counts()), (1, (1, 0, 0)))
        self.gate.close()
        self.ask()
        self.ask()
        self.gate.dismiss(fail)
        self.assertEqual((len(self.flushLoggedErrors(ZeroDivisionError)), self.counts()), (2, (1, 0, 0)))
