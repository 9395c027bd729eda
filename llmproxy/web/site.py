"""The site: what all connections of clients share, above Twisted Web's resource tree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from socket import gethostname
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Site

from llmproxy.config.model import Key, Limits
from llmproxy.errors import Refusal
from llmproxy.http.forwarded import TrustedProxies
from llmproxy.http.hosts import Hosts
from llmproxy.keys import KEY_FILE
from llmproxy.keys.guard import Guard
from llmproxy.keys.limits import Limiter
from llmproxy.usage.book import Book
from llmproxy.web.accesslog import AccessLog
from llmproxy.web.auth import Authenticator
from llmproxy.web.body import Room
from llmproxy.web.channel import ProxyChannel
from llmproxy.web.crowd import Crowd
from llmproxy.web.patience import seconds_between_looks
from llmproxy.web.request import ProxyRequest
from llmproxy.web.unread import too_many_connections, too_many_of_one

if TYPE_CHECKING:
    from llmproxy.keys.store import KeyFile
    from llmproxy.web.tracing import Tracer

__all__ = ["ProxySite"]

SPARE = 64
"""Connections beyond the limits that are still told so, if they ask for anything; others are cut at once."""


class ProxySite(Site):
    """What all connections share.

    :param clock: time.
    :ivar guard: makes those wait who show wrong keys.
    :ivar limiter: what keys have had, against what they may have.
    :ivar configured: keys of the configuration.
    :ivar given: keys that the proxy itself has given out.
    :ivar state_dir: where the proxy keeps what it is to remember; None: nowhere.
    :ivar channels: the open connections.
    :ivar room: what bodies of requests take.
    :ivar now: seconds of looking after connections, up to the last look; for what need not be known better.
    :ivar crowd: how many connections each client has.
    :ivar held: requests that wait for a backend, over all of them.
    :ivar streams: answers that go on until the client leaves (events, logs).
    :ivar ready: fires when the fleet knows what runs; None afterwards.
    :ivar closing: no connection is kept any more.
    :ivar trusted: proxies that are believed whose requests they pass on; :ivar hosts: the proxy's own names.
    :ivar tracer: follows requests; None: nobody does.
    :ivar book: what the models were used for; None: nobody keeps it.
    :ivar upgrade: has another process take this one's place; None: that cannot be.
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
        self.guard = Guard()
        self.limiter = Limiter()
        self.configured: tuple[Key, ...] = ()
        self.given: tuple[Key, ...] = ()
        self.state_dir: str | None = None
        self.room = Room(limits.body_memory, limits.body_disk)
        self.limits = limits
        self.access_log = access_log
        self.channels: set[ProxyChannel] = set()
        self.crowd = Crowd()
        self.now = 0.0
        self._looked = 0.0
        self._turned_away = 0
        self.held = 0
        self.streams: set[ProxyRequest] = set()
        self.ready: Deferred[None] | None = None
        self.closing = False
        self.tracer: Tracer | None = None
        self.trusted = TrustedProxies()
        self.hosts = Hosts()
        self.book: Book | None = None
        self.upgrade: Callable[[], Deferred[dict[str, Any]]] | None = None
        self._look: IDelayedCall | None = None

    @cached_property
    def key_file(self) -> KeyFile | None:
        """Where the keys are kept that the proxy gives out; None: it gives none."""
        # Most never do.
        from llmproxy.keys.store import KeyFile

        return None if self.state_dir is None else KeyFile(self.state_dir)

    def read_key_file(self) -> None:
        """Use the keys that were given out before."""
        if self.state_dir is not None and os.path.exists(os.path.join(self.state_dir, KEY_FILE)):
            assert self.key_file is not None
            self.use_keys(given=self.key_file.read())

    def use_keys(self, configured: Sequence[Key] | None = None, given: Sequence[Key] | None = None) -> None:
        """Others count from now on, also for requests on connections that are open.

        :param configured: those of the configuration; None: as they are.
        :param given: those that the proxy itself has given out; None: as they are.
        """
        self.configured = self.configured if configured is None else tuple(configured)
        self.given = self.given if given is None else tuple(given)
        taken = {key.name for key in self.configured}
        # Without a configured key everybody may do everything, and one that was given changes nothing.
        more = [key for key in self.given if self.configured and key.name not in taken]
        keys = (*self.configured, *more)
        self.guard.forget()
        self.limiter.keep(keys)
        self.authenticator = Authenticator(keys, self.guard)

    def believe(self, proxies: Iterable[str], hosts: Iterable[str]) -> None:
        """Take another configuration's word for who is in front of the proxy.

        :param proxies: those that are believed whose requests they pass on.
        :param hosts: names by which browsers may come, beside those that are always allowed.
        """
        self.trusted, self.hosts = TrustedProxies(proxies), Hosts((*hosts, gethostname()))
        for channel in self.channels:
            channel.meet()

    def buildProtocol(self, addr: IAddress | None) -> ProxyChannel:  # type: ignore[override]
        """A connection of a client: not one of Twisted Web's own, which this one takes the place of."""
        return ProxyChannel(self)

    def bound(self, limits: Limits) -> None:
        """Have others count from now on."""
        self.limits = limits
        self.room.most_memory, self.room.most_disk = limits.body_memory, limits.body_disk

    def opened(self, channel: ProxyChannel, host: str | None) -> Refusal | None:
        """It is there from now on.

        :param host: the address that it is counted for, if it is.
        :return: why nothing is served on it; None: it is a client as others are.
        """
        self.channels.add(channel)
        channel.party, of_one = self.crowd.enter(host)
        if self._look is None:
            self._looked = self.clock.seconds()
            self._look = self.clock.callLater(seconds_between_looks(self.limits), self._look_around)
        limits = self.limits
        if len(self.channels) - self._turned_away > limits.max_connections:
            refusal = too_many_connections(limits.max_connections)
        elif 0 < limits.max_connections_per_address < of_one:
            refusal = too_many_of_one(limits.max_connections_per_address)
        else:
            return None
        self._turned_away += 1
        return refusal

    @property
    def overrun(self) -> bool:
        """More are turned away than are told why."""
        return self._turned_away > SPARE

    def closed(self, channel: ProxyChannel) -> None:
        """It has gone."""
        if channel in self.channels:
            self.channels.discard(channel)
            self.crowd.leave(channel.party)
            if channel.turned_away is not None:
                self._turned_away -= 1
        if not self.channels and self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_around(self) -> None:
        between = seconds_between_looks(self.limits)
        self._look = self.clock.callLater(between, self._look_around)
        looked, self._looked = self._looked, self.clock.seconds()
        # A machine that has slept, or whose clock was set, has waited for nobody in that time.
        self.now += min(max(self._looked - looked, 0.0), 2 * between)
        # What happened since a look is told as of then.
        for channel in list(self.channels):
            channel.look(self.now - between, self.limits)

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

    def newcomers(self) -> Iterator[ProxyChannel]:
        """Those who have connected and not asked for anything yet."""
        return (one for one in self.channels if not getattr(one, "asked", True) and one.turned_away is None)

    def close_idle(self) -> None:
        """Keep no connection beyond its present request."""
        self.closing = True
        for request in list(self.streams):
            request.end_stream()
        for channel in list(self.channels):
            channel.close_if_idle()
