"""Sockets that a process has from the one before it, by the endpoints that they are of."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import MutableMapping
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from zope.interface import implementer

from llmproxy.listening.endpoints import BACKLOG

__all__ = ["VARIABLE", "Inherited", "told_of"]

VARIABLE = "LLMPROXY_UPGRADE"
"""Names the descriptors; what begins like that no backend gets to see."""


def told_of(line: int, sockets: dict[str, int]) -> str:
    """What the next process is told by :data:`VARIABLE`."""
    return json.dumps({"line": line, "sockets": sockets})


class Inherited:
    """What it has.

    :ivar line: the line to the process before it.
    :ivar sockets: descriptors of sockets that listen, by endpoint strings; each is used once.
    :ivar names: those endpoint strings.
    """

    def __init__(self, line: int, sockets: dict[str, int]) -> None:
        self.line = line
        self.sockets = sockets
        self.names = frozenset(sockets)

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Inherited | None:
        """What the environment tells of, and does not any more; None: this process succeeds to nobody."""
        told = environ.pop(VARIABLE, None)
        if told is None:
            return None
        found = json.loads(told)
        inherited = cls(int(found["line"]), {name: int(fd) for name, fd in found["sockets"].items()})
        for fd in (inherited.line, *inherited.sockets.values()):
            # Not for backends that are children.
            os.set_inheritable(fd, False)
        return inherited

    def endpoint(self, reactor: Any, description: str) -> IStreamServerEndpoint | None:
        """Where that endpoint listens already; None: it does not."""
        fd = self.sockets.pop(description, None)
        return None if fd is None else _Adopted(reactor, fd)

    def close_others(self) -> None:
        """What is not listened on any more."""
        sockets, self.sockets = self.sockets, {}
        for fd in sockets.values():
            os.close(fd)


@implementer(IStreamServerEndpoint)
class _Adopted:
    """Listens on a socket that listens.

    Twisted's own gives a Unix socket the mode 666, and a short queue.
    """

    def __init__(self, reactor: Any, fd: int) -> None:
        self._reactor = reactor
        self._fd = fd

    def listen(self, protocolFactory: Any) -> Deferred[IListeningPort]:
        """See :class:`twisted.internet.interfaces.IStreamServerEndpoint`."""
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: Any) -> IListeningPort:
        fd = self._fd
        try:
            os.set_blocking(fd, False)
            with socket.socket(fileno=os.dup(fd)) as one:
                family, path = one.family, one.getsockname()
            port: Any
            if family == socket.AF_UNIX:
                from twisted.internet.unix import Port

                port = Port._fromListeningDescriptor(self._reactor, fd, factory)
                if isinstance(path, str) and path and not path.startswith("\0"):
                    port.mode = stat.S_IMODE(os.stat(path).st_mode)
                port.backlog = BACKLOG
                port.startListening()
            else:
                port = self._reactor.adoptStreamPort(fd, family, factory)
        finally:
            os.close(fd)
        listening: IListeningPort = port
        return listening
