"""The line between the old process and the new one: messages in JSON, and file descriptors with them.

It is one pair of sockets that nobody else has, of the kind that keeps messages apart (``SOCK_SEQPACKET``), so
that a descriptor belongs to the message that it came with.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
    IWriteDescriptor,
)
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Line", "pair"]

LARGEST = 1 << 20
"""Bytes of a message.  The largest one names all backends, a thousand of them with some numbers each."""

ROOM_AGAIN = 0.1
"""Seconds until the next look whether a descriptor can be taken, where none is free."""

Receive = Callable[[dict[str, Any], int | None], None]


class LineReactor(IReactorFDSet, IReactorTime):
    """What a line needs."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Its two ends."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        # The kernel takes twice that, and bounds it (net.core.wmem_max).
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
    return ends


@implementer(IReadDescriptor, IWriteDescriptor)
class Line:
    """One end.

    :param received: told of each message, with the descriptor that came with it, which is the callee's then.
    :param lost: called once when the other end is gone.
    """

    def __init__(
        self, reactor: LineReactor, end: socket.socket, received: Receive, lost: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._end = end
        self._received = received
        self._lost = lost
        self._waiting: deque[tuple[bytes, int | None]] = deque()
        self._closed = False
        self._later: IDelayedCall | None = None
        reactor.addReader(self)

    def say(self, what: str, fd: int | None = None, **more: Any) -> None:
        """Send a message.

        :param fd: goes with it; a copy is kept for as long as that takes.
        :raises ConnectionError: the other end is gone.
        :raises OSError: no descriptor is left for the copy; nothing has been sent.
        """
        if self._closed:
            raise ConnectionError("the other process is gone")
        message = json.dumps({"say": what, **more}).encode("ascii")
        if not self._waiting and self._sent(message, fd):
            return
        copy = None if fd is None else os.dup(fd)
        self._waiting.append((message, copy))
        self._reactor.addWriter(self)

    def _sent(self, message: bytes, fd: int | None) -> bool:
        ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            self._end.sendmsg([message], ancillary)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """End it; the other end is told by that."""
        if self._closed:
            return
        self._closed = True
        if self._later is not None:
            self._later.cancel()
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._end.close()
        while self._waiting:
            fd = self._waiting.popleft()[1]
            if fd is not None:
                os.close(fd)

    # -- the reactor's ------------------------------------------------------------------------------

    def fileno(self) -> int:
        """See :class:`twisted.internet.interfaces.IFileDescriptor`."""
        return self._end.fileno()

    def logPrefix(self) -> str:
        """See :class:`twisted.internet.interfaces.ILoggingContext`."""
        return "upgrade"

    def doRead(self) -> None:
        """One message, or the end."""
        if not self._has_room():
            # What cannot be kept is dropped by the kernel, with the client that it belongs to.
            self._reactor.removeReader(self)
            self._later = self._reactor.callLater(ROOM_AGAIN, self._read_on)
            return
        try:
            data, ancillary, _, _ = self._end.recvmsg(
                LARGEST, socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self._gone()
            return
        fds = array.array("i")
        for _, _, rights in ancillary:
            fds.frombytes(rights)
        message: Mapping[str, Any] = json.loads(data)
        self._received(dict(message), fds[0] if fds else None)

    def _has_room(self) -> bool:
        """There is one for what comes, and one for the copy of it that Twisted serves."""
        try:
            one = os.dup(self._end.fileno())
            try:
                os.close(os.dup(one))
            finally:
                os.close(one)
        except OSError:
            return False
        return True

    def _read_on(self) -> None:
        self._later = None
        self._reactor.addReader(self)

    def doWrite(self) -> None:
        """Send what waits."""
        try:
            while self._waiting and self._sent(*self._waiting[0]):
                fd = self._waiting.popleft()[1]
                if fd is not None:
                    os.close(fd)
        except OSError:
            self._gone()
            return
        if not self._waiting:
            self._reactor.removeWriter(self)

    def connectionLost(self, reason: Failure) -> None:
        """See :class:`twisted.internet.interfaces.IReadDescriptor`."""
        self._gone()

    def _gone(self) -> None:
        if not self._closed:
            self.close()
            self._lost()
