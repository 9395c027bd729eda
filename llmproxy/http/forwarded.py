"""Whose request it is when a proxy in front of this one tells of it: X-Forwarded-*, and RFC 7239.  Pure.

Anybody can send these fields.  They are believed only on a connection from an address that the operator
trusts (``trusted_proxies``), and of the addresses in them only those that such proxies have written: the
client is the right-most one that is not trusted itself, for all that stands left of it was written by whoever
that is.

Where both forms are there, ``X-Forwarded-*`` counts: nearly all proxies write it, and most of them pass on a
``Forwarded`` that their client made up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from attrs import evolve, frozen

from llmproxy.http.headers import Fields

__all__ = ["UNKNOWN", "Origin", "TrustedProxies", "peer_origin"]

_HOST = re.compile(rb"\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?|[A-Za-z0-9._-]{1,255}(:[0-9]{1,5})?")
"""What is taken for a ``Host`` that a proxy tells of."""

_PAIR = re.compile(rb'[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:([^",; \t]*)|"((?:[^"\\]|\\.)*)")[ \t]*')
"""One pair of a ``Forwarded`` element; browsers' addresses with colons are quoted, and some forget it."""

_MOST = 64
"""Hops that are looked at.  There are never as many; a client could send thousands through a proxy."""

_SCHEMES = (b"http", b"https")


@frozen
class Origin:
    """Where a request is from.

    :ivar client: the client's address, for the log and for limits.
    :ivar forwarded_for: the same as ``X-Forwarded-For`` has it.
    :ivar secure: the client speaks TLS, with us or with the proxy in front of us.
    :ivar host: the ``Host`` that it asked for, where a proxy tells; None: what the request says itself.
    """

    client: str
    forwarded_for: bytes
    secure: bool
    host: bytes | None = None


UNKNOWN = Origin("-", b"unknown", secure=False)
"""Of a connection that has no address, such as a Unix socket's."""


def peer_origin(address: str | None, *, secure: bool) -> Origin:
    """Whoever is at the other end of a connection.

    :param address: None: it has none.
    :param secure: it is TLS.
    """
    if address is None:
        return evolve(UNKNOWN, secure=secure)
    return Origin(address, address.encode("ascii", "replace"), secure)


@frozen
class _Hop:
    address: bytes
    scheme: bytes | None
    host: bytes | None


class TrustedProxies:
    """Those whose word is taken.

    :param words: addresses, networks (``10.0.0.0/8``), or ``unix`` for whoever connects by a Unix socket.
    :raises ValueError: one of them is none of these.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        words = tuple(words)
        self._unix = "unix" in words
        self._networks = tuple(ip_network(word, strict=False) for word in words if word != "unix")

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def trust(self, address: str | None) -> bool:
        """Whether that one is trusted; None: it has no address."""
        if address is None:
            return self._unix
        parsed = _parsed(address)
        return parsed is not None and self._has(parsed)

    def _has(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address.version == network.version and address in network for network in self._networks)

    def origin(self, fields: Fields, peer: Origin) -> Origin:
        """Where a request is from that came over a connection of a trusted proxy.

        :param peer: that proxy.
        """
        hops = _told_by_x(fields) if any(name in fields for name in _X) else _told_by_rfc(fields)
        client, chosen = peer, None
        for hop in reversed(hops):
            address = _parsed(_without_port(hop.address.decode("latin-1")))
            if address is None:
                # "unknown", or a name that hides it: nobody vouches for what stands before it.
                chosen = hop if chosen is None else chosen
                break
            client, chosen = _known(str(address)), hop
            if not self._has(address):
                break
        scheme = None if chosen is None else chosen.scheme
        return Origin(
            client.client,
            client.forwarded_for,
            secure=peer.secure if scheme is None else scheme == b"https",
            host=None if chosen is None else chosen.host,
        )


_X = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")


def _told_by_x(fields: Fields) -> Sequence[_Hop]:
    addresses, schemes, hosts = (_listed(fields, name) for name in _X)
    hops = max(len(addresses), min(1, len(schemes) + len(hosts)))
    return [
        _Hop(
            addresses[at] if at < len(addresses) else b"",
            _scheme(_beside(schemes, at, hops)),
            _host(_beside(hosts, at, hops)),
        )
        for at in range(hops)
    ]


def _listed(fields: Fields, name: bytes) -> list[bytes]:
    if name not in fields:
        return []
    return [word.strip() for word in b",".join(fields.all(name)).split(b",")[-_MOST:]]


def _beside(values: list[bytes], at: int, hops: int) -> bytes | None:
    """What was told with the address at that place.  Some proxies add to these two lists as to that of
    addresses, others put their own in place of what was there: then all that is left is the nearest one's."""
    if not values:
        return None
    return values[at] if len(values) == hops else values[-1]


def _told_by_rfc(fields: Fields) -> Sequence[_Hop]:
    if b"forwarded" not in fields:
        return ()
    hops = []
    for element in _split(b",".join(fields.all(b"forwarded")), b","):
        pairs: dict[bytes, bytes] = {}
        for pair in _split(element, b";"):
            found = _PAIR.fullmatch(pair)
            if found is None:
                # It means nothing, and so does what stands left of it.
                pairs = {}
                break
            quoted = found[3]
            pairs[found[1].lower()] = found[2] if quoted is None else re.sub(rb"\\(.)", rb"\1", quoted)
        hops.append(_Hop(pairs.get(b"for", b""), _scheme(pairs.get(b"proto")), _host(pairs.get(b"host"))))
    return hops[-_MOST:]


def _split(value: bytes, at: bytes) -> list[bytes]:
    """The parts between separators that stand in no quotes."""
    parts, begun, quoted, index = [], 0, False, 0
    while index < len(value):
        byte = value[index : index + 1]
        if quoted and byte == b"\\":
            index += 1
        elif byte == b'"':
            quoted = not quoted
        elif byte == at and not quoted:
            parts.append(value[begun:index])
            begun = index + 1
        index += 1
    return [*parts, value[begun:]]


def _scheme(value: bytes | None) -> bytes | None:
    word = None if value is None else value.strip().lower()
    return word if word in _SCHEMES else None


def _host(value: bytes | None) -> bytes | None:
    return value if value is not None and _HOST.fullmatch(value) else None


def _without_port(written: str) -> str:
    """``192.0.2.1:80``, ``[2001:db8::1]:80`` and ``[2001:db8::1]`` without what is no address."""
    if written.startswith("["):
        return written[1:].partition("]")[0]
    return written.partition(":")[0] if written.count(":") == 1 else written


@lru_cache(maxsize=4096)
def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        # A link-local address names its interface, which is of no matter to a network.
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    # A socket for both versions has IPv4 written within IPv6.
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return parsed if mapped is None else mapped


@lru_cache(maxsize=4096)
def _known(address: str) -> Origin:
    return Origin(address, address.encode("ascii"), secure=False)
