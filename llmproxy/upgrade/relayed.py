"""In the new process: connections of the old one, by each of which it hands a request over."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.protocol import Factory

from llmproxy.config.model import Key
from llmproxy.errors import Refusal
from llmproxy.fleet.fleet import Fleet
from llmproxy.http.headers import Fields
from llmproxy.upgrade.handed import read_handed, without
from llmproxy.web.auth import ANYBODY
from llmproxy.web.channel import ProxyChannel
from llmproxy.web.hints import NO_HINTS, Hints, read_hints
from llmproxy.web.site import ProxySite

__all__ = ["RelayedChannel", "relayed"]


class RelayedChannel(ProxyChannel):
    """Such a connection.  What is told on it is believed: nobody else could have made it."""

    def __init__(self, site: ProxySite, fleet: Fleet) -> None:
        super().__init__(site)
        self._fleet = fleet

    def meet(self) -> None:
        """See :class:`~llmproxy.web.channel.ProxyChannel`."""
        super().meet()
        self.trusted = True

    def hear(self, fields: Fields) -> None:
        """Take over what the old process knows of the request."""
        request = self.requests[0]
        handed = read_handed(fields)
        request.fields = clean = without(fields)
        self.origin, self.client = handed.origin, handed.origin.client
        # It has been waiting since then.
        request.arrived = min(request.arrived, handed.arrived)
        if handed.key is None:
            return
        key = self._key(handed.key)
        if key is not None:
            # It has been counted against what the key may have.
            free = evolve(key, requests_per_minute=None, tokens_per_minute=None, streams=None)
            self.known = (self.site.authenticator, clean, free, self._hints(clean))

    def _key(self, name: str) -> Key | None:
        """None: it is configured no more, and whoever asks is asked who it is."""
        site = self.site
        if not site.configured:
            return ANYBODY
        return next((one for one in (*site.configured, *site.given) if one.name == name), None)

    def _hints(self, fields: Fields) -> Hints:
        try:
            return read_hints(fields, self._fleet.config.probes)
        except Refusal:
            # It was allowed when it came.
            return NO_HINTS


def relayed(site: ProxySite, fleet: Fleet) -> Factory[Any]:
    """Makes the channels."""
    factory: Factory[Any] = Factory.forProtocol(lambda: RelayedChannel(site, fleet))
    factory.noisy = False
    return factory
