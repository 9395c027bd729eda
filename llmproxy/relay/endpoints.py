"""How a connection to a backend's address is made."""

from __future__ import annotations

import errno
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

__all__ = ["CONNECT_TIMEOUT", "endpoint_for", "lacking"]

_OURS = {
    errno.EMFILE: "no file descriptor is left for a connection to it",
    errno.ENFILE: "this machine has no file descriptor left for a connection to it",
    errno.ENOBUFS: "this machine has no memory left for a connection to it",
    errno.ENOMEM: "this machine has no memory left for a connection to it",
}
"""What a connection may fail for that says nothing about the other side (connect(2), socket(2))."""

CONNECT_TIMEOUT = 3.0
"""Seconds that connecting may take.  A backend on this machine takes less than a millisecond; the address of
a stopped container answers only after 3 to 4 s, which says no more than that it is gone."""


class _NoPortLeft(ConnectError):
    """All ports of this machine for connections to that address are taken."""


class _Endpoint4(TCP4ClientEndpoint):
    """For an IPv4 address, where EADDRNOTAVAIL has this one meaning: of a name it may be that of an IPv6
    address, on a machine that has none itself."""

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        connecting: Deferred[IProtocol] = super().connect(protocolFactory)
        return connecting.addErrback(_name_it)


def _name_it(failure: Failure) -> Failure:
    error = failure.value
    if isinstance(error, ConnectError) and error.osError == errno.EADDRNOTAVAIL:
        return Failure(_NoPortLeft(error.osError, str(error)))
    return failure


def endpoint_for(reactor: Any, host: str, port: int, *, tls: bool = False) -> IStreamClientEndpoint:
    """The endpoint for one address of a backend.

    :param reactor: provides TCP, name resolution and time.
    :param host: an IP address or a name.
    :param tls: speak TLS and verify the certificate for ``host``.
    """
    endpoint = _plain(reactor, host, port)
    return wrapClientTLS(optionsForClientTLS(host), endpoint) if tls else endpoint


def _plain(reactor: Any, host: str, port: int) -> IStreamClientEndpoint:
    try:
        version = ip_address(host).version
    except ValueError:
        return HostnameEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT)
    if version == 4:
        return _Endpoint4(reactor, host, port, timeout=CONNECT_TIMEOUT)
    return TCP6ClientEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT)


def lacking(failure: Failure) -> str | None:
    """What was missing here for a connection that failed, in words; None: it failed at the other side."""
    error = failure.value
    if isinstance(error, _NoPortLeft):
        return "this machine has no port left for a connection to it"
    if isinstance(error, ConnectError):
        return _OURS.get(error.osError)
    return _OURS.get(error.errno or 0) if isinstance(error, OSError) else None
