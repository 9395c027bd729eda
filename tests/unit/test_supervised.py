"""What systemd is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.systemd import PINGS, Notifier, Supervised, from_environment, watchdog_seconds


class Told:
    """In place of a :class:`Notifier`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, *lines: str) -> bool:
        self.lines += lines
        return True

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_one_datagram(tmp_path: Path, abstract: bool) -> None:
    """To a file's socket, or to one without a file; a line is one line."""
    path = f"@{tmp_path.name}-notify" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path[1:] if abstract else path)
        manager.setblocking(False)
        assert Notifier(path).tell("READY=1", "STATUS=two\nlines")
        assert manager.recv(4096) == b"READY=1\nSTATUS=two lines"


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, False),
        ({"NOTIFY_SOCKET": ""}, False),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, False),
        ({"NOTIFY_SOCKET": "@x"}, True),
    ],
)
def test_who_is_told(environ: dict[str, str], found: bool) -> None:
    """A socket that there can be here, or nobody."""
    assert (from_environment(environ) is not None) == found


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
    ],
)
def test_how_often_the_watchdog_is_fed(environ: dict[str, str], seconds: float | None) -> None:
    """As the manager says, if it is said to this process."""
    assert watchdog_seconds(environ, 7) == seconds


class SupervisedTests(SynchronousTestCase):
    """From the start to the end."""

    def build(self, within: float | None = 3.0) -> None:
        self.clock, self.told, self.sound = Clock(), Told(), True
        self.one = Supervised(self.clock, self.told, lambda: self.sound, within, lambda: 12.5)  # type: ignore[arg-type]

    def test_a_whole_life(self) -> None:
        """It serves, reads its settings again, and ends within a time."""
        self.build(None)
        self.one.serves("well")
        self.assertEqual(self.told.take(), ["READY=1", "STATUS=well"])
        self.one.reloads()
        self.assertEqual(self.told.take(), ["RELOADING=1", "MONOTONIC_USEC=12500000"])
        self.one.serves("well")
        self.one.ends(40.0, "ending")
        self.assertEqual(
            self.told.take()[2:], ["STOPPING=1", "EXTEND_TIMEOUT_USEC=40000000", "STATUS=ending"]
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_watchdog_is_fed_while_all_is_well(self) -> None:
        """Not while the scheduler fails, which is logged once; and again when it does not."""
        self.build()
        self.one.serves("well")
        self.one.serves("well")
        self.told.take()
        self.clock.pump([3.0 / PINGS] * 4)
        self.assertEqual(self.told.take(), ["WATCHDOG=1"] * 4)
        self.sound = False
        self.clock.pump([3.0 / PINGS] * 4)
        self.assertEqual(self.told.take(), [])
        self.sound = True
        self.clock.advance(3.0 / PINGS)
        self.assertEqual(self.told.take(), ["WATCHDOG=1"])
        self.one.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_has_given_its_place_away_says_no_more(self) -> None:
        """The last thing is who is the service now."""
        self.build()
        self.one.serves("well")
        self.told.take()
        self.one.handed_to(17)
        self.assertEqual(self.told.take(), ["MAINPID=17"])
        self.one.ends(1.0, "ending")
        self.one.serves("well")
        self.one.status("x")
        self.assertEqual((self.told.take(), self.clock.getDelayedCalls()), ([], []))

    def test_a_manager_that_is_away_stops_nothing(self) -> None:
        """It is logged once."""
        notifier = Notifier("/nonexistent/socket")
        self.assertEqual([notifier.tell("READY=1"), notifier.tell("WATCHDOG=1")], [False, False])
