"""What systemd is told: that the proxy serves, reloads, ends, and still turns (``sd_notify(3)``).

It is told by datagrams to the socket that ``NOTIFY_SOCKET`` names; without one nothing of this is loaded.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Notifier", "Supervised", "from_environment", "supervised", "watchdog_seconds"]

PINGS = 3
"""Pings within the watchdog's time.  systemd advises two; one may come late where the machine is busy."""


class Notifier:
    """Tells the service manager.

    :param path: of its socket; one that begins with ``@`` has no file (``unix(7)``).
    """

    _log = Logger()

    def __init__(self, path: str) -> None:
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._failed = False

    def tell(self, *lines: str) -> bool:
        """Tell it something, such as ``READY=1``; whether it has been told.

        It never waits: where the manager takes nothing, being late with it does no good.
        """
        message = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
                one.setblocking(False)
                one.sendto(message.encode(), self._address)
        except OSError as cause:
            if not self._failed:
                self._log.warn("systemd cannot be told ({cause}): {message}", cause=cause, message=message)
            self._failed = True
            return False
        self._failed = False
        return True


def from_environment(environ: Mapping[str, str]) -> Notifier | None:
    """Where this process has somebody to tell."""
    path = environ.get("NOTIFY_SOCKET", "")
    return Notifier(path) if path[:1] in ("/", "@") else None


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Within how many seconds it wants to hear from this process again and again; None: it does not."""
    text, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isascii() or not text.isdigit() or int(text) <= 0 or whose not in ("", str(pid)):
        return None
    return int(text) / 1e6


class Supervised:
    """Keeps the manager informed while the proxy runs.

    :param sound: the proxy does what it is there for; while it does not, the watchdog is not fed.
    :param within: the watchdog's time; None: there is none.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        notifier: Notifier,
        sound: Callable[[], bool],
        within: float | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._notifier = notifier
        self._sound = sound
        self._within = within
        self._monotonic = monotonic
        self._due: IDelayedCall | None = None
        self._unsound = False
        self._over = False

    def serves(self, status: str) -> None:
        """It is ready, for the first time or after a reload."""
        self._tell("READY=1", f"STATUS={status}")
        if self._due is None and self._within is not None and not self._over:
            self._ping()

    def reloads(self) -> None:
        """It reads its configuration again; :meth:`serves` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(self._monotonic() * 1e6)}")

    def ends(self, within: float, status: str) -> None:
        """It ends in order, which may take so many seconds, whatever the unit allows."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(within * 1e6)}", f"STATUS={status}")

    def handed_to(self, pid: int) -> None:
        """Another process is the service from now on; this one says no more."""
        self.close()
        self._tell(f"MAINPID={pid}")
        self._over = True

    def _tell(self, *lines: str) -> None:
        if not self._over:
            self._notifier.tell(*lines)

    def status(self, status: str) -> None:
        """What it does, in words."""
        self._tell(f"STATUS={status}")

    def close(self) -> None:
        """Feed the watchdog no more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _ping(self) -> None:
        assert self._within is not None
        self._due = self._clock.callLater(self._within / PINGS, self._ping)
        if self._sound():
            self._unsound = False
            self._tell("WATCHDOG=1")
        elif not self._unsound:
            self._unsound = True
            self._log.error("the scheduler fails, so that systemd's watchdog is not fed")


def supervised(clock: IReactorTime, sound: Callable[[], bool]) -> Supervised | None:
    """For this process, if it has a service manager."""
    notifier = from_environment(os.environ)
    if notifier is None:
        return None
    return Supervised(clock, notifier, sound, watchdog_seconds(os.environ, os.getpid()))
