"""Listening on an endpoint, and looking at its description before."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint

from llmproxy.errors import ConfigError
from llmproxy.listening.endpoints import TlsEndpoint, read_tls, with_backlog

if TYPE_CHECKING:
    from llmproxy.listening.serving import Certificates
    from llmproxy.upgrade.inherited import Inherited
    from llmproxy.web.site import ProxySite

__all__ = ["check", "listen"]


def check(reactor: Any, description: str, *, files: bool = True, has: Container[str] = ()) -> None:
    """See whether an endpoint can be used; nothing is bound.

    :param files: look at its certificate and key, too.
    :param has: endpoints whose sockets are there already.
    :raises llmproxy.errors.ConfigError: it cannot.
    """
    try:
        tls = read_tls(description)
        if tls is None:
            # It only parses; inherited sockets are looked at.
            if description not in has:
                serverFromString(reactor, description)
            return
    except (ValueError, TypeError, LookupError, OSError) as cause:
        raise ConfigError(
            f"listen: {description!r} is no endpoint that can be used ({cause});"
            " use tcp:8000, ssl:..., unix:/path or systemd:..."
        ) from None
    if files:
        from llmproxy.listening.certificates import load

        load(tls)


def listen(
    reactor: Any,
    description: str,
    site: ProxySite,
    certificates: Callable[[], Certificates],
    inherited: Inherited | None = None,
) -> Deferred[IListeningPort]:
    """Let clients in.

    :param certificates: those that are served, made when there is the first.
    :param inherited: sockets that another process has listened on.
    :raises llmproxy.errors.ConfigError: the certificate cannot be served.
    """
    tls = read_tls(description)
    endpoint = None if inherited is None else inherited.endpoint(reactor, description)
    if tls is not None:
        return _listen_tls(reactor, tls, site, certificates(), endpoint)
    factory: Any = site
    if description.startswith("haproxy:"):
        from llmproxy.listening.arriving import Reception

        factory = Reception(site)
    if endpoint is None:
        endpoint = serverFromString(reactor, with_backlog(description))
    elif description.startswith("haproxy:"):
        endpoint = _proxied(endpoint)
    done: Deferred[IListeningPort] = endpoint.listen(factory)
    return done


def _proxied(endpoint: IStreamServerEndpoint) -> IStreamServerEndpoint:
    from twisted.protocols.haproxy import proxyEndpoint

    return proxyEndpoint(endpoint)


def _listen_tls(
    reactor: Any,
    tls: TlsEndpoint,
    site: ProxySite,
    certificates: Certificates,
    endpoint: IStreamServerEndpoint | None,
) -> Deferred[IListeningPort]:
    from twisted.protocols.tls import TLSMemoryBIOFactory

    from llmproxy.listening.arriving import Reception

    served = certificates.serve(tls)
    factory: Any = TLSMemoryBIOFactory(served, False, Reception(site), reactor)
    if endpoint is not None:
        pass
    elif ":" in tls.interface:
        endpoint = TCP6ServerEndpoint(reactor, tls.port, tls.backlog, tls.interface)
    else:
        endpoint = TCP4ServerEndpoint(reactor, tls.port, tls.backlog, tls.interface)
    if tls.proxied:
        endpoint = _proxied(endpoint)
    done: Deferred[IListeningPort] = endpoint.listen(factory)
    return done
