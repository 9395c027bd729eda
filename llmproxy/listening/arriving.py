"""Connections of which it must first be known who they are or what they speak: TLS, and the PROXY protocol.

What a client of a plain endpoint says is HTTP/1.1 at once.  Here the client's side of the handshake comes
first, or the line in which a load balancer tells whose connection it is; only then is there a channel, of the
protocol that was agreed on (ALPN, RFC 7301).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress, IDelayedCall, IHandshakeListener
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from llmproxy.web.site import ProxySite

__all__ = ["HANDSHAKE", "Arriving", "Reception"]

HANDSHAKE = 10.0
"""Seconds that a client has for it."""


@implementer(IHandshakeListener)
class Arriving(Protocol):
    """One connection, until it is known what it is; from then on it only hands on.

    :param reception: where it is counted until then.
    """

    transport: Any

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._channel: Any = None
        self._patience: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Give it some time."""
        if not self._reception.enter(self):
            self.transport.abortConnection()
            return
        self._patience = self._reception.site.clock.callLater(HANDSHAKE, self.transport.abortConnection)

    def handshakeCompleted(self) -> None:
        """The client has shown that it is one; what it says next is HTTP."""
        self._arrived(getattr(self.transport, "negotiatedProtocol", None))

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client; without TLS they are the first sign that the PROXY line is complete."""
        if self._channel is None:
            self._arrived(None)
        self._channel.dataReceived(data)

    def _arrived(self, protocol: bytes | None) -> None:
        self._forget()
        self._channel = channel = self._reception.channel(protocol)
        channel.makeConnection(self.transport)
        # From now on the connection's bytes take no further step: a method that is looked up on the instance.
        self.dataReceived = channel.dataReceived  # type: ignore[method-assign]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        self._forget()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.connectionLost(reason)

    def _forget(self) -> None:
        self._reception.leave(self)
        patience, self._patience = self._patience, None
        if patience is not None and patience.active():
            patience.cancel()


class Reception(Factory):
    """Lets clients in to a site."""

    noisy = False

    def __init__(self, site: ProxySite) -> None:
        self.site = site
        self._arriving: set[Arriving] = set()

    def buildProtocol(self, addr: IAddress | None) -> Arriving:
        """A connection."""
        return Arriving(self)

    def enter(self, arriving: Arriving) -> bool:
        """Count it; False: there are as many as may be already that have not said what they are."""
        if len(self._arriving) >= self.site.limits.max_connections:
            return False
        self._arriving.add(arriving)
        return True

    def leave(self, arriving: Arriving) -> None:
        """It is known what it is, or it is gone."""
        self._arriving.discard(arriving)

    def channel(self, protocol: bytes | None) -> Any:
        """What a connection is from then on.

        :param protocol: what was agreed on, of what the endpoint offers.
        """
        if protocol == b"h2":
            # Most proxies have no TLS of their own.
            from llmproxy.web.h2.connection import H2Connection

            return H2Connection(self.site)
        return self.site.buildProtocol(None)
