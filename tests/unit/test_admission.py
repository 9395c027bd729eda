"""The queue before a gate, and the count behind it."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.admission import RETRY_AFTER, STILL, Admission
from llmproxy.errors import Refusal


class AdmissionTests(SynchronousTestCase):
    """The queue and the count alone."""

    def hold(self, admission: Admission[str], names: str, now: float = 0.0, **how: Any) -> None:
        for name in names:
            admission.hold(name, now, **how)

    def test_at_first_nobody_is_there_and_nobody_goes(self) -> None:
        """It is closed, empty, and without a limit of what is in flight."""
        admission: Admission[str] = Admission(1)
        self.assertEqual((admission.open, admission.in_flight, admission.waiting), (False, 0, 0))
        self.assertEqual((admission.abandoned, admission.may_evict, admission.urgency), (False, False, 0))
        self.assertIsNone(admission.waiting_since)
        self.assertIs(admission.enter(), False)
        self.assertIs(admission.roomy, False)
        self.assertIsNone(admission.next())
        self.assertEqual(admission.dismiss(), [])
        admission.open = True
        self.assertIsNone(admission.next())
        for _ in range(5):
            self.assertIs(admission.roomy, True)
            self.assertIs(admission.enter(), True)
        self.assertEqual(admission.in_flight, 5)

    def test_as_many_as_there_is_room_for_go_at_once(self) -> None:
        """The next one does when one has finished; nobody goes past those who wait."""
        admission: Admission[str] = Admission(9, 2, open=True)
        self.assertEqual([admission.enter() for _ in range(3)], [True, True, False])
        self.assertEqual((admission.in_flight, admission.roomy), (2, False))
        self.hold(admission, "ab")
        self.assertIsNone(admission.next())
        admission.release()
        self.assertEqual((admission.in_flight, admission.roomy, admission.enter()), (1, False, False))
        self.assertEqual(admission.next(), "a")
        self.assertEqual((admission.in_flight, admission.waiting), (2, 1))
        admission.release()
        admission.open = False
        self.assertIsNone(admission.next())
        self.assertEqual((admission.in_flight, admission.waiting), (1, 1))
        admission.open = True
        self.assertEqual(admission.next(), "b")
        self.assertEqual((admission.in_flight, admission.waiting, admission.next()), (2, 0, None))

    def test_the_higher_priority_goes_first_and_then_who_came_first(self) -> None:
        """Whether they are handed over or sent away; the highest of them is what the demand is worth."""
        for dismissed in (False, True):
            admission: Admission[str] = Admission(9, open=True)
            self.hold(admission, "ab")
            self.hold(admission, "cd", priority=7)
            self.hold(admission, "e", priority=-1)
            self.hold(admission, "f")
            self.assertEqual((admission.waiting, admission.urgency), (6, 7))
            if dismissed:
                self.assertEqual(admission.dismiss(), [*"cdabfe"])
            else:
                self.assertEqual([admission.next() for _ in range(6)], [*"cdabfe"])
            self.assertEqual((admission.waiting, admission.urgency, admission.may_evict), (0, 0, False))
            self.assertEqual((admission.waiting_since, admission.next()), (None, None))
            self.assertEqual(admission.in_flight, 0 if dismissed else 6)

    def test_urgency_is_that_of_those_who_still_wait(self) -> None:
        """Also when all of them are less urgent than most."""
        admission: Admission[str] = Admission(9)
        self.hold(admission, "a", priority=3)
        self.hold(admission, "b", priority=-2)
        admission.leave("a", 0.0)
        self.assertEqual(admission.urgency, -2)
        admission.leave("b", 0.0)
        self.assertEqual(admission.urgency, 0)

    def test_who_finds_the_queue_full_is_refused(self) -> None:
        """With the number of places and when to come again; one that had gone through before is not."""
        admission: Admission[str] = Admission(2)
        self.hold(admission, "ab")
        with self.assertRaises(Refusal) as caught:
            self.hold(admission, "c")
        self.assertEqual((caught.exception.code, caught.exception.retry_after), ("queue_full", RETRY_AFTER))
        self.assertEqual(admission.waiting, 2)
        self.hold(admission, "d", bounded=False)
        self.assertEqual(admission.waiting, 3)
        admission.leave("a", 0.0)
        with self.assertRaises(Refusal):
            self.hold(admission, "c")
        admission.leave("b", 0.0)
        self.hold(admission, "c")
        self.assertEqual(admission.dismiss(), ["d", "c"])

    def test_who_leaves_takes_only_his_own_place(self) -> None:
        """Whatever the priority; one that is not there changes nothing."""
        admission: Admission[str] = Admission(9, open=True)
        self.hold(admission, "abc")
        self.hold(admission, "x", priority=1)
        admission.leave("b", 1.0)
        admission.leave("b", 1.0)
        admission.leave("nobody", 1.0)
        self.assertEqual(admission.waiting, 3)
        admission.leave("x", 1.0)
        self.assertEqual([admission.next(), admission.next(), admission.waiting], ["a", "c", 0])

    def test_others_may_have_to_leave_for_one_of_those_who_wait(self) -> None:
        """As long as one of them waits for whom they may."""
        admission: Admission[str] = Admission(9, open=True)
        self.hold(admission, "a", may_evict=False)
        self.assertIs(admission.may_evict, False)
        self.hold(admission, "bc")
        self.assertIs(admission.may_evict, True)
        admission.leave("b", 0.0)
        self.assertIs(admission.may_evict, True)
        admission.leave("c", 0.0)
        self.assertIs(admission.may_evict, False)
        self.hold(admission, "d")
        self.assertEqual((admission.next(), admission.may_evict), ("a", True))
        self.assertEqual((admission.next(), admission.may_evict), ("d", False))
        self.hold(admission, "e")
        admission.dismiss()
        self.assertIs(admission.may_evict, False)

    def test_a_start_is_abandoned_when_the_last_who_waited_has_left(self) -> None:
        """Not before, and not where the gate is open; whoever comes then wants it again."""
        admission: Admission[str] = Admission(9)
        self.hold(admission, "ab")
        admission.leave("a", 1.0)
        self.assertIs(admission.abandoned, False)
        admission.leave("b", 1.0)
        self.assertIs(admission.abandoned, True)
        self.hold(admission, "c", 2.0)
        self.assertIs(admission.abandoned, False)
        admission.open = True
        admission.leave("c", 3.0)
        self.assertIs(admission.abandoned, False)

    def test_since_when_it_is_wanted(self) -> None:
        """Since the first came, also when it was another one, and short breaks count as none."""
        for pause, since in ((0.0, 10.0), (STILL, 10.0), (STILL + 0.5, 20.0 + STILL + 0.5)):
            admission: Admission[str] = Admission(9)
            self.hold(admission, "a", 10.0)
            self.hold(admission, "b", 12.0)
            self.assertEqual(admission.waiting_since, 10.0)
            admission.leave("a", 15.0)
            self.assertEqual(admission.waiting_since, 10.0)
            admission.leave("b", 20.0)
            self.assertIsNone(admission.waiting_since)
            self.hold(admission, "c", 20.0 + pause)
            self.assertEqual(admission.waiting_since, since)
            # What is long past is no break while somebody waits.
            self.hold(admission, "d", 100.0)
            self.assertEqual(admission.waiting_since, since)

    def test_who_has_been_served_no_longer_counts_as_waiting(self) -> None:
        """It is wanted since the oldest of those who are left came, whatever their priority."""
        admission: Admission[str] = Admission(9, open=True)
        self.hold(admission, "a", 1.0)
        self.hold(admission, "b", 3.0)
        self.hold(admission, "c", 2.0, priority=1)
        self.hold(admission, "d", 4.0, priority=1)
        seen = [(admission.next(), admission.waiting_since) for _ in range(4)]
        self.assertEqual(seen, [("c", 1.0), ("d", 1.0), ("a", 3.0), ("b", None)])
        # Nobody has left meanwhile: who comes next is a new demand at once.
        self.hold(admission, "e", 4.5)
        self.assertEqual(admission.waiting_since, 4.5)
        admission.dismiss()
        self.hold(admission, "f", 4.6)
        self.assertEqual(admission.waiting_since, 4.6)
