"""Twisted's epoll reactor with less between a readable socket and its protocol.

For each event Twisted makes a logging context around the call, of which nothing here makes use: Twisted's own
modern logger does not know it.  That alone is a tenth of what a small request or a token costs
(docs/benchmarks.md).  Everything else is Twisted's.
"""

from __future__ import annotations

from select import EPOLLIN
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.logger import Logger

__all__ = ["LeanEPollReactor"]


class LeanEPollReactor(EPollReactor):
    """Calls what is readable straight away."""

    _log = Logger()

    # Twisted's own, of which it says nothing to type checkers.
    _poller: Any
    _selectables: dict[int, Any]
    _disconnectSelectable: Any
    _doReadOrWrite: Any

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, ``timeout`` seconds at most, and carry them to whom they are for."""
        selectables = self._selectables
        for fd, event in self._poller.poll(-1 if timeout is None else timeout, len(selectables)):
            selectable = selectables.get(fd)
            if selectable is None:
                # Gone since, by an event before this one.
                continue
            if event != EPOLLIN:
                self._doReadOrWrite(selectable, fd, event)
                continue
            try:
                why = selectable.doRead()
            except Exception as cause:
                # As Twisted does: it is logged, and ends the connection whose bytes it came from.
                self._log.failure("reading from a socket")
                why = cause
            if why:
                self._disconnectSelectable(selectable, why, True)

    doIteration = doPoll
