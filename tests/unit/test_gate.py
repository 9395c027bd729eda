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
