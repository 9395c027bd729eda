"""Certificates that are served: renewed ones are noticed, and told of when they end soon.

A connection keeps what it has begun with; each new one gets what the files hold by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from OpenSSL import SSL
from twisted.internet.interfaces import IDelayedCall, IOpenSSLServerConnectionCreator, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from llmproxy.errors import ConfigError
from llmproxy.listening.certificates import Loaded, load, offered, signature
from llmproxy.listening.endpoints import TlsEndpoint
from llmproxy.web.family import Family

if TYPE_CHECKING:
    from twisted.protocols.tls import TLSMemoryBIOProtocol

__all__ = ["LOOK", "SOON", "Certificates", "Served"]

LOOK = 60.0
"""Seconds between looks at the files."""

SOON = 14 * 86400.0
"""Seconds before its end from which a certificate is warned of: ACME clients renew 30 days before it."""

AGAIN = 86400.0
"""Seconds between such warnings."""


@implementer(IOpenSSLServerConnectionCreator)
class Served:
    """The certificate of one endpoint.

    :raises llmproxy.errors.ConfigError: it cannot be served.
    """

    _log = Logger()

    def __init__(self, endpoint: TlsEndpoint) -> None:
        self.endpoint = endpoint
        # Before it is read, so that what is written meanwhile is noticed.
        self._signature = signature(endpoint)
        self.loaded: Loaded = load(endpoint)
        self._warned, self._wrong = -AGAIN, False

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A new client's side of OpenSSL."""
        return SSL.Connection(self.loaded.context, None)

    def look(self, *, asked: bool = False) -> None:
        """Read the files if they have changed; what is wrong with them is logged once.

        :param asked: somebody wants to know: what is still wrong is logged again.
        """
        found = signature(self.endpoint)
        if found == self._signature and not (asked and self._wrong):
            return
        self._signature = found
        try:
            self.loaded = load(self.endpoint)
        except ConfigError as cause:
            self._wrong = True
            self._log.error("the certificate that was served before stays: {why}", why=str(cause))
        else:
            self._warned, self._wrong = -AGAIN, False
            self._log.info("new certificate: {what}", what=self.described())

    def described(self) -> str:
        """It, for the log."""
        until = datetime.fromtimestamp(self.loaded.expires, UTC)
        names = ", ".join(self.loaded.names[:3]) + (", ..." if len(self.loaded.names) > 3 else "")
        speaks = "HTTP/2 and HTTP/1.1" if len(offered(self.endpoint)) > 1 else "HTTP/1.1"
        return f"{self.endpoint.certificate} of {names}, until {until:%Y-%m-%d %H:%M} UTC, for {speaks}"

    def warn(self, now: float) -> None:
        """Say once a day that it ends soon, or has.

        :param now: POSIX seconds.
        """
        left = self.loaded.expires - now
        if left < SOON and now - self._warned >= AGAIN:
            self._warned = now
            when = f"ends in {left / 86400:.1f} days" if left > 0 else "HAS EXPIRED, and clients refuse it"
            self._log.warn(
                "the certificate {when}: {what}; renew it, it is noticed within a minute",
                when=when,
                what=self.described(),
            )


class Certificates:
    """All that are served.

    :param clock: of POSIX seconds.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._served: list[Served] = []
        self._due: IDelayedCall | None = None

    def serve(self, endpoint: TlsEndpoint) -> Served:
        """Begin with one.

        :raises llmproxy.errors.ConfigError: it cannot be served.
        """
        served = Served(endpoint)
        if served.loaded.exposed:
            self._log.warn(
                "every user of this machine may read the private key {path}; chmod o-r it",
                path=endpoint.private_key,
            )
        self._log.info("certificate: {what}", what=served.described())
        self._served.append(served)
        served.warn(self._clock.seconds())
        if self._due is None:
            self._due = self._clock.callLater(LOOK, self._look_again)
        return served

    def _look_again(self) -> None:
        self._due = self._clock.callLater(LOOK, self._look_again)
        self.look()

    def look(self, *, asked: bool = False) -> None:
        """See whether there are other ones; see :meth:`Served.look`."""
        for served in self._served:
            served.look(asked=asked)
            served.warn(self._clock.seconds())

    def close(self) -> None:
        """Look no more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def collect(self) -> Iterator[Family]:
        """See :class:`~llmproxy.web.family.Collector`."""
        if not self._served:
            return
        expiry = Family(
            "gauge",
            "llmproxy_tls_certificate_expiry_seconds",
            "Seconds until the certificate that is served on a port ends; less than 0: it has.",
            ("port",),
        )
        now = self._clock.seconds()
        for port in dict.fromkeys(served.endpoint.port for served in self._served):
            ends = min(one.loaded.expires for one in self._served if one.endpoint.port == port)
            expiry.add((str(port),), ends - now)
        yield expiry
