"""Writing to a client's or a backend's socket with as little in between as the reactor allows.

``transport.write`` only queues: the bytes leave in a later turn of the reactor, after two ``epoll_ctl``
calls and one more ``epoll_wait``.  A streamed token is one small write to a socket that is nearly always
writable, so that trying the socket first halves what the relay adds.

Best is to try it when all that has come in one turn has been seen to: whoever is at the other end is woken
once by all that is for him, rather than by each piece, and to wake a process costs more than to write to it
(docs/benchmarks.md).  That needs a reactor that has such an end (:mod:`llmproxy.reactors.epoll`); with any
other one each write is tried at once.
"""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.interfaces import ITransport
from twisted.internet.tcp import Connection

__all__ = ["Left", "left", "push", "unsent", "write_now", "write_soon"]


def write_soon(transport: ITransport, data: bytes) -> None:
    """Write ``data`` at the end of this turn, or now where the reactor has no such time.

    What else is written to the same transport in the same turn must come this way to stay in order, and
    whoever ends the connection calls :func:`push` before.
    """
    if not isinstance(transport, Connection) or (outbox := _outbox(transport)) is None:
        write_now(transport, data)
    elif transport in outbox:
        outbox[transport] += data
    elif transport.dataBuffer or transport._tempDataBuffer:
        # Behind what its peer has not taken yet nothing is won by waiting.
        transport.write(data)
    else:
        outbox[transport] = data


def push(transport: ITransport) -> None:
    """Write now what waits for the end of the turn: the connection is about to be ended."""
    outbox = _outbox(transport)
    waiting = None if outbox is None else outbox.pop(transport, None)
    if waiting is not None:
        write_now(transport, waiting)


def write_now(transport: ITransport, data: bytes) -> None:
    """Write ``data``, trying the socket at once when nothing is queued before it.

    What the socket does not take, and everything on a transport that is no plain socket (TLS, tests), goes
    through ``transport.write``, which also finds out about a lost connection.
    """
    if (
        isinstance(transport, Connection)
        and not transport.dataBuffer
        and not transport._tempDataBuffer
        and transport.connected
        and not transport.disconnecting
        and not transport._aborting
        and not transport.TLS
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:
            # Full, or gone: the reactor finds out which.
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)


def unsent(transport: object) -> int:
    """Bytes that were written to ``transport`` and wait for its socket.

    Twisted moves them from one buffer to the other only when the socket is writable, so that only both
    together tell how far a peer is behind.  A TLS transport answers for the one below it.
    """
    waiting = len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
    outbox = _outbox(transport)
    if outbox is not None:
        waiting += len(outbox.get(transport, b""))
    return int(waiting + getattr(transport, "_tempDataLen", 0))


class Left(NamedTuple):
    """What waits for a socket.  See :func:`left`."""

    buffer: bytes
    offset: int

    def taken_since(self, later: Left) -> bool:
        """Whether the socket has taken any of it by then."""
        # Twisted goes on in its buffer, or has another one, with each byte that leaves, and not before.
        return self.buffer is not later.buffer or self.offset != later.offset


def left(transport: object) -> Left | None:
    """What was written to ``transport`` and waits for its socket, to be held against what is left later."""
    if not unsent(transport):
        return None
    return Left(getattr(transport, "dataBuffer", b""), getattr(transport, "offset", 0))


def _outbox(transport: object) -> dict[object, bytes] | None:
    """That of the reactor of a plain socket's transport, if it has one at present."""
    if not isinstance(transport, Connection):
        # A TLS transport would tell of the reactor of the socket below it.
        return None
    outbox: dict[object, bytes] | None = getattr(transport.reactor, "outbox", None)
    return outbox
