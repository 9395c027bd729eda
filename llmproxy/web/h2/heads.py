"""Heads of HTTP/2 and of HTTP/1.1, the one made of the other.  Pure.

A request's head becomes the header of one to an HTTP/1.1 server, so that nothing may be in it that means
something else there: line ends, a second framing, a second host (RFC 9113 sections 8.2 and 8.3;
CVE-2025-57804 and its like). It is checked here and not by the library, whose checks end the whole connection
and take longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

from llmproxy.errors import Refusal

__all__ = ["CONNECTION_SPECIFIC", "Malformed", "RequestHead", "answer_fields", "no_connect", "read_request"]

CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
"""What has no meaning in HTTP/2, and must not be in it (RFC 9113 section 8.2.2)."""

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))


class Malformed(Exception):
    """The request is malformed: its stream is reset, and nobody is told of it (RFC 9113 section 8.1.1)."""


@frozen
class RequestHead:
    """A request as HTTP/1.1 would have it.

    :ivar fields: names and values in their order, without ``Content-Length``.
    :ivar length: what that says; None when it is not there.
    :ivar connects: it is a CONNECT, be it for a WebSocket (RFC 8441).
    """

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    length: int | None
    connects: bool


def read_request(headers: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """Check the header fields of a request.

    :param headers: pseudo-header fields included; ``Cookie`` in one piece.
    :raises Malformed: it is no request.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    lengths: set[bytes] = set()
    hosts: list[bytes] = []
    for name, value in headers:
        if _VALUE.fullmatch(value) is None:
            raise Malformed("a value with characters that none may have")
        if name.startswith(b":"):
            if fields or lengths or hosts or name in pseudo or name not in _PSEUDO:
                raise Malformed("a pseudo-header field that is unknown, or in the wrong place")
            pseudo[name] = value
        elif _NAME.fullmatch(name) is None:
            raise Malformed("a name with characters that none may have")
        elif name in CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
            raise Malformed("a field that is about a connection of HTTP/1.1")
        elif name == b"content-length":
            lengths.add(value)
        elif name == b"host":
            hosts.append(value)
        else:
            fields.append((name, value))
    host = _host(pseudo, hosts)
    if host is not None:
        fields.insert(0, (b"host", host))
    method, target, connects = _asked(pseudo)
    return RequestHead(method, target, fields, _length(lengths), connects)


def _host(pseudo: dict[bytes, bytes], hosts: list[bytes]) -> bytes | None:
    authority = pseudo.get(b":authority")
    said = {*hosts, *(() if authority is None else (authority,))}
    if len(said) > 1 or len(hosts) > 1:
        raise Malformed("more than one host")
    return next(iter(said), None)


def _asked(pseudo: dict[bytes, bytes]) -> tuple[bytes, bytes, bool]:
    method = pseudo.get(b":method", b"")
    if _METHOD.fullmatch(method) is None:
        raise Malformed("no method")
    target = pseudo.get(b":path")
    if method == b"CONNECT":
        return method, target if target and target.startswith(b"/") else b"/", True
    if b":protocol" in pseudo or pseudo.get(b":scheme", b"").lower() not in (b"http", b"https"):
        raise Malformed("no scheme, or a protocol that nobody connects for")
    # HTTP/2 has no absolute form, and the asterisk is for OPTIONS alone (RFC 9113 section 8.3.1).
    if target is None or _TARGET.fullmatch(target) is None:
        raise Malformed("no path")
    if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        raise Malformed("a path that is none")
    return method, target, False


def _length(lengths: set[bytes]) -> int | None:
    if not lengths:
        return None
    (length,) = lengths if len(lengths) == 1 else (b"",)
    if _DIGITS.fullmatch(length) is None:
        raise Malformed("a length that is none, or two of them")
    return int(length)


def no_connect() -> Refusal:
    """501: what needs a connection of its own is for HTTP/1.1."""
    return Refusal(
        501,
        "invalid_request",
        "Neither CONNECT nor WebSockets are served over HTTP/2.",
        kind="invalid_request_error",
        hint="Connect for a WebSocket by HTTP/1.1, as clients do that are not told otherwise.",
    )


def answer_fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """The header fields of an answer whose head was made for HTTP/1.1, ``:status`` first.

    :param head: from its status line to the empty line.
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    fields = [(b":status", first[9:12])]
    for line in lines:
        name, _, value = line.partition(b":")
        lower = name.lower()
        if lower not in CONNECTION_SPECIFIC:
            fields.append((lower, value.strip(b" \t")))
    return fields
