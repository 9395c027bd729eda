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


def _one_left() -> None:
    os.close(os.open(os.devnull, os.O_RDONLY))


def accept_gently(port: Any, clock: Any, one_left: Callable[[], None] = _one_left) -> None:
    """Let a listening port pause while there is no descriptor for another connection.

    :param port: a port of Twisted's that listens on a socket.
    :param one_left: raises :exc:`OSError` when there is none.
    """
    if hasattr(port, "doRead"):
        port.doRead = _Acceptor(port, clock, one_left).accept


class _Acceptor:
    """Stands between the reactor and a port."""

    def __init__(self, port: Any, clock: Any, one_left: Callable[[], None]) -> None:
        self._port, self._clock, self._one_left = port, clock, one_left
        self._accept: Callable[[], object] = port.doRead
        self._told: float | None = None

    def accept(self) -> None:
        """Somebody wants to connect."""
        try:
            self._one_left()
        except OSError as cause:
            if cause.errno not in _NONE_LEFT:
                raise
            self._pause(cause)
        else:
            self._accept()

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
