"""The site: what all connections of clients share, above Twisted Web's resource tree."""

from __future__ import annotations

from collections.abc import Iterable
from socket import gethostname
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Site

from llmproxy.config.model import Limits
from llmproxy.http.forwarded import TrustedProxies
from llmproxy.http.hosts import Hosts
from llmproxy.usage.book import Book
from llmproxy.web.accesslog import AccessLog
from llmproxy.web.auth import Authenticator
from llmproxy.web.channel import ProxyChannel
from llmproxy.web.request import ProxyRequest

if TYPE_CHECKING:
    from llmproxy.web.tracing import Tracer

__all__ = ["ProxySite"]

IDLE = 60.0
"""Seconds for which a connection is kept on which the client does not speak, though it is its turn."""

LOOK = 5.0
"""Seconds between looks for such connections: one timer for all instead of one for each."""


class ProxySite(Site):
    """What all connections share.

    :param clock: time.
    :ivar channels: the open connections.
    :ivar tick: how many times it has been looked for idle connections.
    :ivar held: requests that wait for a backend, over all of them.
    :ivar streams: answers that go on until the client leaves (events, logs).
    :ivar ready: fires when the fleet knows what runs; None afterwards.
    :ivar closing: no connection is kept any more.
    :ivar trusted: proxies that are believed whose requests they pass on; :ivar hosts: names of the proxy's own.
    :ivar tracer: follows requests; None: nobody does.
    :ivar book: what the models were used for; None: nobody keeps it.
    """

    noisy = False

    def __init__(
        self,
        resource: IResource,
        clock: Any,
        authenticator: Authenticator,
        limits: Limits,
        access_log: AccessLog,
    ) -> None:
        super().__init__(resource, ProxyRequest, reactor=clock, parsePOSTFormSubmission=False)
        self.clock = clock
        self.authenticator = authenticator
        self.limits = limits
        self.access_log = access_log
        self.channels: set[ProxyChannel] = set()
        self.tick = 0
        self.held = 0
        self.streams: set[ProxyRequest] = set()
        self.ready: Deferred[None] | None = None
        self.closing = False
        self.tracer: Tracer | None = None
        self.trusted = TrustedProxies()
        self.hosts = Hosts()
        self.book: Book | None = None
        self._look: IDelayedCall | None = None

    def believe(self, proxies: Iterable[str], hosts: Iterable[str]) -> None:
        """Take another configuration's word for who is in front of the proxy.

        :param proxies: those that are believed whose requests they pass on.
        :param hosts: names by which browsers may come, beside those that are always allowed.
        """
        self.trusted, self.hosts = TrustedProxies(proxies), Hosts((*hosts, gethostname()))
        for channel in self.channels:
            channel.meet()

    def buildProtocol(self, addr: IAddress | None) -> ProxyChannel:  # type: ignore[override]
        """A connection of a client."""
        return ProxyChannel(self)

    def opened(self, channel: ProxyChannel) -> None:
        """It is there from now on."""
        self.channels.add(channel)
        if self._look is None:
            self._look = self.clock.callLater(LOOK, self._look_for_idle)

    def closed(self, channel: ProxyChannel) -> None:
        """It has gone."""
        self.channels.discard(channel)
        if not self.channels and self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_for_idle(self) -> None:
        self._look = self.clock.callLater(LOOK, self._look_for_idle)
        self.tick += 1
        oldest = self.tick - IDLE / LOOK
        for channel in [one for one in self.channels if one.tick < oldest and one.idle]:
            channel.idle_too_long()

    def startFactory(self) -> None:
        """Twisted's own access log, and the timer for its dates, stay off."""

    def stopFactory(self) -> None:
        """See :meth:`startFactory`."""

    def log(self, request: object) -> None:
        """See :class:`~llmproxy.web.accesslog.AccessLog`."""

    def log_failure(self, what: str, reason: Failure) -> None:
        """Log a fault of the proxy's own."""
        self.access_log.failure(what, reason)

    def acceptableProtocols(self) -> list[bytes]:
        """What is offered by ALPN on TLS endpoints."""
        return [b"http/1.1"]

    def fleet_started(self) -> None:
        """Dispatch what came while the fleet looked at what runs."""
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.callback(None)

    def close_idle(self) -> None:
        """Keep no connection beyond its present request."""
        self.closing = True
        for request in list(self.streams):
            request.end_stream()
        for channel in list(self.channels):
            channel.close_if_idle()
