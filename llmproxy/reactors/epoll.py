"""Twisted's epoll reactor with less between sockets and protocols.

For each event Twisted makes a logging context around the call, of which nothing here makes use: Twisted's own
modern logger does not know it.  That alone is a tenth of what a small request or a token costs.  And where
much happens at once, what is written in answer leaves together (:mod:`llmproxy.reactors.writing`).
docs/benchmarks.md tells what both are worth.  Its timers do not mind when the time of day makes a step
(:mod:`llmproxy.reactors.steady`).  Everything else is Twisted's.
"""

from __future__ import annotations

from select import EPOLLIN
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.tcp import Connection
from twisted.logger import Logger

from llmproxy.reactors.steady import SteadyTime
from llmproxy.reactors.writing import write_now

__all__ = ["LeanEPollReactor"]

CROWD = 4
"""Events in one turn from which on what they write is kept until its end.  For fewer it is not worth it."""


class LeanEPollReactor(SteadyTime, EPollReactor):
    """Calls what is readable straight away, and writes after a crowded turn what was written in it.

    :ivar outbox: in a crowded turn, what is to be written to each transport; else None.
    """

    _log = Logger()
    outbox: dict[Connection, bytes] | None = None

    # Twisted's own, of which it says nothing to type checkers.
    _poller: Any
    _selectables: dict[int, Any]
    _disconnectSelectable: Any
    _doReadOrWrite: Any

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, ``timeout`` seconds at most, and carry them to whom they are for."""
        selectables = self._selectables
        events = self._poller.poll(-1 if timeout is None else timeout, len(selectables))
        if not events:
            self.follow()
        if len(events) >= CROWD:
            self.outbox = {}
        for fd, event in events:
            selectable = selectables.get(fd)
            if selectable is None:
                # Gone since, by an event before this one.
                continue
            try:
                if event == EPOLLIN:
                    self._read(selectable)
                else:
                    self._doReadOrWrite(selectable, fd, event)
            except Exception:
                # As with Twisted, a fault in one connection's end is nothing to the others.
                self._log.failure("ending a connection")
        if self.outbox is not None:
            outbox, self.outbox = self.outbox, None
            self._write(outbox)

    def _write(self, outbox: dict[Connection, bytes]) -> None:
        for transport, data in outbox.items():
            try:
                write_now(transport, data)
            except Exception:
                # It may be a fault of whoever is told that there is much to write; the others go on.
                self._log.failure("writing to a socket")

    def _read(self, selectable: Any) -> None:
        try:
            why = selectable.doRead()
        except Exception as cause:
            # As Twisted does: it is logged, and ends the connection whose bytes it came from.
            self._log.failure("reading from a socket")
            why = cause
        if why:
            self._disconnectSelectable(selectable, why, True)

    doIteration = doPoll
