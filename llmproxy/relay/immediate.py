"""Writing to a socket at once.

``transport.write`` only queues: the bytes leave in a later turn of the reactor, after two ``epoll_ctl``
calls and one more ``epoll_wait``.  A streamed token is one small write to a socket that is nearly always
writable, so trying the socket first halves what the relay adds (docs/benchmarks.md).
"""

from __future__ import annotations

from twisted.internet.interfaces import ITransport
from twisted.internet.tcp import Connection

__all__ = ["unsent", "write_now"]


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
    return int(waiting + getattr(transport, "_tempDataLen", 0))
