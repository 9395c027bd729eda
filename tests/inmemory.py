"""Backends in memory: endpoints whose far side answers as a test says, with no socket and no reactor."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectBindError, ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.relay.upstream import UpstreamConnection
from llmproxy.runtimes.interface import Address

__all__ = ["Far", "FarTransport", "Servers"]

NO_SUCH_PATH = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SICK = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class FarTransport(StringTransport):
    """The proxy's end of a connection; the test is the other end."""

    def __init__(self, wrote: Callable[[Far, bytes], None]) -> None:
        super().__init__()
        self.far: Far | None = None
        self.aborted = False
        self._wrote = wrote

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to set."""

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.far is not None and not self.aborted:
            self._wrote(self.far, data)

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.disconnecting = True
            assert self.far is not None
            self.far.closed = True
            self.far.protocol.connectionLost(Failure(ConnectionDone()))


@define(eq=False)
class Far:
    """One connection, seen from the backend."""

    protocol: UpstreamConnection
    transport: FarTransport
    closed: bool = False
    address: Address | None = None

    def send(self, data: bytes) -> None:
        """Bytes from the backend."""
        if not self.closed:
            self.protocol.dataReceived(data)

    def close(self, reason: Exception | None = None) -> None:
        """The backend closes, cleanly unless a reason is given."""
        if not self.closed:
            self.closed = True
            self.transport.aborted = True
            self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    @property
    def received(self) -> bytes:
        """All that the proxy has written."""
        return bytes(self.transport.value())


@define(eq=False)
class Servers:
    """Where every address leads.

    :ivar mode: ``refuse``, ``lacking`` (no descriptor for a connection), ``healthy`` (health probes get 200),
        ``sick`` (503), ``hang`` (accept, say nothing) or ``slow_connect`` (connections stay pending).
    :ivar modes: the same for single hosts.
    :ivar requests: connections on which something other than a health probe was sent.
    :ivar controls: answers to an engine's controls, by ``METHOD /path``; None: never.  Others are requests.
    :ivar asked: the controls that were asked for, queries included; ``controlled``: on which connections.
    """

    mode: str = "refuse"
    modes: dict[str, str] = field(factory=dict)
    probes: int = 0
    requests: list[Far] = field(factory=list)
    pending: list[Deferred[Any]] = field(factory=list)
    controls: dict[str, bytes | None] = field(factory=lambda: {"GET /is_sleeping": NO_SUCH_PATH})
    asked: list[str] = field(factory=list)
    controlled: list[Far] = field(factory=list)

    def connect(self, address: Address) -> IStreamClientEndpoint:
        """What the fleet is given to make endpoints."""
        return _Endpoint(self, address)

    def _wrote(self, far: Far, data: bytes) -> None:
        words = data.partition(b" HTTP/1.1\r\n")[0].decode("ascii", "replace")
        control = words.partition("?")[0]
        if control in self.controls:
            self.asked.append(words)
            self.controlled.append(far)
            answer = self.controls[control]
            if answer is not None:
                far.send(answer)
            return
        if not data.startswith(b"GET /health "):
            if far not in self.requests:
                self.requests.append(far)
            return
        self.probes += 1
        mode = self._mode_of(far.address)
        if mode == "healthy":
            far.send(HEALTHY)
        elif mode == "sick":
            far.send(SICK)

    def _mode_of(self, address: Address | None) -> str:
        return self.mode if address is None else self.modes.get(address.host, self.mode)


@implementer(IStreamClientEndpoint)
@define(eq=False)
class _Endpoint:
    servers: Servers
    address: Address | None = None

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        mode = self.servers._mode_of(self.address)
        if mode == "refuse":
            return fail(ConnectionRefusedError())
        if mode == "lacking":
            return fail(ConnectBindError(errno.EMFILE, os.strerror(errno.EMFILE)))
        if mode == "slow_connect":
            waiting: Deferred[Any] = Deferred()
            self.servers.pending.append(waiting)
            return waiting
        transport = FarTransport(self.servers._wrote)
        protocol = protocolFactory.buildProtocol(None)
        transport.far = Far(protocol, transport, address=self.address)
        protocol.makeConnection(transport)
        return succeed(protocol)
