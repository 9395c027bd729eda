"""File descriptors: as many as connections need, and a pause where there are none."""

from __future__ import annotations

import errno
import os
import resource
from unittest import mock

from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Limits
from llmproxy.reactors.descriptors import AT_ONCE, PAUSE, REMIND, RESERVE, accept_gently, room_for
from llmproxy.service import fitting


class RoomTests(SynchronousTestCase):
    """How many files may be open."""

    def limited(self, soft: int, hard: int, wanted: int) -> tuple[int, list[tuple[int, int]]]:
        asked: list[tuple[int, int]] = []
        with (
            mock.patch.object(resource, "getrlimit", return_value=(soft, hard)),
            mock.patch.object(resource, "setrlimit", side_effect=lambda _, pair: asked.append(pair)),
        ):
            return room_for(wanted), asked

    def test_it_asks_for_what_it_needs(self) -> None:
        """And for no more; as far as the hard limit allows, which it leaves as it is."""
        endless = resource.RLIM_INFINITY
        self.assertEqual(self.limited(1024, 524288, 9000), (9000, [(9000, 524288)]))
        self.assertEqual(self.limited(1024, 4096, 9000), (4096, [(4096, 4096)]))
        self.assertEqual(self.limited(1024, endless, 9000), (9000, [(9000, endless)]))
        self.assertEqual(self.limited(20000, 524288, 9000), (20000, []))
        self.assertEqual(self.limited(endless, endless, 9000), (9000, []))

    def test_a_refusal_is_no_fault(self) -> None:
        """It goes on with what there is."""
        with (
            mock.patch.object(resource, "getrlimit", return_value=(1024, 524288)),
            mock.patch.object(resource, "setrlimit", side_effect=ValueError("not allowed")),
        ):
            self.assertEqual(room_for(9000), 1024)

    def test_connections_are_what_descriptors_allow(self) -> None:
        """Two for each, and some for the rest; less than what is asked for is told, with what to do."""
        asked = Limits(max_connections=1000)
        self.assertEqual(fitting(asked, 3, lambda wanted: wanted), (asked, ""))
        limits, told = fitting(asked, 3, lambda wanted: 1024)
        self.assertLess(limits.max_connections, 512)
        self.assertGreater(limits.max_connections, 400)
        self.assertIn(f"at most {limits.max_connections} connections are served", told)
        self.assertIn("LimitNOFILE", told)
        self.assertEqual(fitting(Limits(), 3, lambda wanted: 8)[0].max_connections, 1)


class AcceptTests(SynchronousTestCase):
    """A port without descriptors."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.left = True
        self.log: list[str] = []

    def some_left(self) -> None:
        if not self.left:
            raise OSError(errno.EMFILE, "Too many open files")

    def test_it_pauses_and_goes_on(self) -> None:
        """It reads nothing for a moment, tells so once a minute, and accepts when there are some again."""
        port = mock.Mock(connected=True, sessionno=0)
        read = port.doRead
        accept_gently(port, self.clock, self.some_left)
        port.doRead()
        self.assertEqual(read.call_count, 1)
        self.left = False
        with capturedLogs() as told:
            for _ in range(100):
                port.doRead()
                self.clock.advance(PAUSE)
            self.assertEqual(len(told), 1)
            self.clock.advance(REMIND)
            port.doRead()
            self.assertEqual(len(told), 2)
        self.assertIn("limits.max_connections", told[0]["log_format"])
        self.assertEqual((port.stopReading.call_count, port.startReading.call_count), (101, 100))
        self.left = True
        self.clock.advance(PAUSE)
        port.doRead()
        self.assertEqual(read.call_count, 2)

    def test_it_takes_one_after_the_other(self) -> None:
        """And asks before each whether there is one more; not for ever, as others want their turn."""
        port = mock.Mock(connected=True, sessionno=0)
        asked = 0

        def asks() -> None:
            nonlocal asked
            asked += 1
            if asked == 4:
                raise OSError(errno.EMFILE, "Too many open files")

        def reads() -> None:
            self.assertEqual(port.numberAccepts, 1)
            port.sessionno += 1

        port.doRead = reads
        accept_gently(port, self.clock, asks)
        port.doRead()
        self.assertEqual((port.sessionno, port.stopReading.call_count), (3, 1))
        self.clock.advance(PAUSE)
        port.doRead()
        self.assertEqual(port.sessionno, 3 + AT_ONCE)

    def test_some_are_left_for_others(self) -> None:
        """A client gets none of the last RESERVE."""
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        port = mock.Mock(connected=True, sessionno=0)
        read = port.doRead
        accept_gently(port, self.clock)
        for spare, served in ((RESERVE, 0), (RESERVE + 1, 1)):
            with mock.patch.object(resource, "getrlimit", return_value=(lowest + spare, lowest + spare)):
                port.doRead()
            self.assertEqual(read.call_count, served)

    def test_a_port_that_was_closed_stays_closed(self) -> None:
        """It is not read again after its pause."""
        port = mock.Mock(connected=True, sessionno=0)
        accept_gently(port, self.clock, self.some_left)
        self.left = False
        port.doRead()
        port.connected = False
        self.clock.advance(PAUSE)
        port.startReading.assert_not_called()

    def test_other_faults_are_told(self) -> None:
        """What has nothing to do with the number of files is raised."""

        def denied() -> None:
            raise OSError(errno.EACCES, "denied")

        port = mock.Mock(connected=True, sessionno=0)
        accept_gently(port, self.clock, denied)
        self.assertRaises(OSError, port.doRead)

    def test_the_question_leaves_nothing_open(self) -> None:
        """It is asked for every connection."""
        before = len(os.listdir("/proc/self/fd"))
        port = mock.Mock(connected=True, sessionno=0)
        accept_gently(port, self.clock)
        for _ in range(50):
            port.doRead()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_what_is_no_socket_is_left_alone(self) -> None:
        """A port of the tests reads nothing."""
        reactor = MemoryReactorClock()
        port = reactor.listenTCP(0, mock.Mock())
        accept_gently(port, self.clock)
        self.assertFalse(hasattr(port, "doRead"))
