"""File descriptors: as many as the connections need, and what happens when there are none left.

Twisted closes a connection that it has no descriptor for at once, with two lines in the log for each; and
where its reserve is gone as well it asks again and again, as fast as it can.  Here the port takes a pause
instead, and who wants to connect waits in the kernel's queue: some connection will be over soon.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

__all__ = ["PAUSE", "accept_gently", "room_for"]

PAUSE = 0.2
"""Seconds for which nobody is accepted when there is no descriptor left."""

AT_ONCE = 50
"""Connections that are accepted in one turn of the reactor, so that others get theirs."""

RESERVE = 16
"""Descriptors that connections of clients leave: for those to backends, files, probes."""

REMIND = 60.0
"""Seconds between two lines in the log about it."""

_NONE_LEFT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))

_log = Logger()


def room_for(wanted: int) -> int:
    """Have this process allowed to open ``wanted`` files, as far as whoever started it lets it.

    :return: how many it may open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted:
        # No more than is needed: children inherit it, and some programs look at each that there could be.
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        except (OSError, ValueError) as cause:
            _log.info("the limit of open files stays at {soft}: {cause}", soft=soft, cause=str(cause))
    return soft


def _some_left() -> None:
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    # It is the lowest number that is free, so that all below it are taken.
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and lowest >= soft - RESERVE:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def accept_gently(port: Any, clock: Any, some_left: Callable[[], None] = _some_left) -> None:
    """Let a listening port pause while there is no descriptor for another connection.

    :param port: a port of Twisted's that listens on a socket.
    :param some_left: raises :exc:`OSError` when there are none.
    """
    if hasattr(port, "doRead"):
        port.doRead = _Acceptor(port, clock, some_left).accept


class _Acceptor:
    """Stands between the reactor and a port."""

    def __init__(self, port: Any, clock: Any, some_left: Callable[[], None]) -> None:
        self._port, self._clock, self._some_left = port, clock, some_left
        self._accept: Callable[[], object] = port.doRead
        self._told: float | None = None

    def accept(self) -> None:
        """Somebody wants to connect."""
        port = self._port
        for _ in range(AT_ONCE):
            try:
                self._some_left()
            except OSError as cause:
                if cause.errno not in _NONE_LEFT:
                    raise
                self._pause(cause)
                return
            # Twisted would take all who wait, and close those for whom there is no descriptor.
            port.numberAccepts, before = 1, port.sessionno
            self._accept()
            if port.sessionno == before:
                return

    def _pause(self, cause: OSError) -> None:
        now = self._clock.seconds()
        if self._told is None or now - self._told >= REMIND:
            self._told = now
            _log.error(
                "no file descriptor is left, so that new connections wait ({cause}): raise the limit"
                " (LimitNOFILE= in systemd's unit, ulimits in Compose), or lower limits.max_connections",
                cause=cause.strerror,
            )
        self._port.stopReading()
        self._clock.callLater(PAUSE, self._go_on)

    def _go_on(self) -> None:
        # It may have been closed meanwhile.
        if self._port.connected:
            self._port.startReading()
