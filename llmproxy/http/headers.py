"""Header rules of the proxy: what is passed on, what is dropped, what is added.  Pure.

Names keep the case and order in which they came, since HTTP lets a proxy keep them (RFC 9110 section 5.3
allows no reordering of fields of one name).  Hop-by-hop fields are those of RFC 9110 section 7.6.1 with the
older ones that RFC 2616 section 13.5.1 named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = [
    "Headers",
    "authority",
    "end_to_end",
    "first",
    "is_event_stream",
    "request_head",
    "response_head",
    "upgrade",
    "valid_request_id",
]

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields in the order in which they came."""

_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

# Fields of a request that the proxy writes itself.  ``Expect`` has been answered by the front already.
_REWRITTEN = _HOP_BY_HOP | {
    b"content-length",
    b"expect",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-request-id",
}

# What carries the client's key, which never reaches a backend.
_CREDENTIALS = frozenset((b"authorization", b"x-api-key"))

# Fields of a response that the proxy writes itself.
_ANSWERED = _HOP_BY_HOP | {b"x-request-id", b"x-llmproxy-backend", b"x-llmproxy-cold-start"}

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def first(headers: Headers, name: bytes) -> bytes | None:
    """The value of the first field of this (lower-case) name."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None


def _connection_options(headers: Headers) -> set[bytes]:
    options: set[bytes] = set()
    for key, value in headers:
        if len(key) == 10 and key.lower() == b"connection":
            options.update(option.strip().lower() for option in value.split(b","))
    return options


def end_to_end(headers: Headers, dropped: frozenset[bytes] = _HOP_BY_HOP) -> list[tuple[bytes, bytes]]:
    """The fields that are for the far end: without ``dropped`` and without what ``Connection`` names."""
    options = _connection_options(headers)
    if options:
        # ``Connection: content-length`` must not make a message lose its framing.
        dropped = dropped | (options - {b"content-length", b"host"})
    return [field for field in headers if field[0].lower() not in dropped]


def upgrade(headers: Headers) -> bytes | None:
    """The protocol that the client asks to switch to (RFC 9110, 7.8), such as ``websocket``, else None.

    Another HTTP, or TLS, is not asked for on a client's behalf: its requests would go past every check.
    """
    asked = first(headers, b"upgrade")
    if asked is None or b"upgrade" not in _connection_options(headers):
        return None
    protocols = [protocol.strip().lower() for protocol in asked.split(b",")]
    return None if any(protocol.startswith((b"h2", b"http/", b"tls/")) for protocol in protocols) else asked


def is_event_stream(headers: Headers) -> bool:
    """The answer is ``text/event-stream``."""
    kind = first(headers, b"content-type")
    return kind is not None and kind.lower().startswith(b"text/event-stream")


def valid_request_id(value: bytes | None) -> bool:
    """Whether a client's request id may be used: printable ASCII without spaces, at most 128 bytes."""
    return value is not None and _REQUEST_ID.fullmatch(value) is not None


def authority(host: str, port: int, default_port: int) -> bytes:
    """``Host`` for a backend: brackets around IPv6, the port unless it is the scheme's own."""
    name = f"[{host}]" if ":" in host else host
    return name.encode("ascii") if port == default_port else b"%s:%d" % (name.encode("ascii"), port)


def request_head(
    method: bytes,
    target: bytes,
    headers: Headers,
    *,
    client: bytes,
    scheme: bytes,
    request_id: bytes,
    length: int | None,
    host: bytes | None = None,
    authorization: bytes | None = None,
    passthrough: bool = False,
    upgrade: bytes | None = None,
) -> bytes:
    """The head of the request that goes to the backend.

    :param target: request target in origin form, raw.
    :param client: the client's address, appended to ``X-Forwarded-For``.
    :param length: bytes of the body; ``None`` when the request has none.
    :param host: ``Host`` to send; ``None`` keeps the client's.
    :param authorization: the backend's own ``Authorization`` value.
    :param passthrough: keep the client's credentials.
    :param upgrade: the protocol that the connection shall switch to.
    """
    dropped = _REWRITTEN if passthrough else _REWRITTEN | _CREDENTIALS
    if host is not None:
        dropped = dropped | {b"host"}
    lines = [b"%s %s HTTP/1.1" % (method, target)]
    if host is not None:
        lines.append(b"Host: " + host)
    forwarded = []
    asked_host = b""
    for key, value in headers:
        name = key.lower()
        if name == b"x-forwarded-for":
            forwarded.append(value)
        elif name == b"host":
            asked_host = value
    for key, value in end_to_end(headers, frozenset(dropped)):
        lines.append(key + b": " + value)
    if authorization is not None and not passthrough:
        lines.append(b"Authorization: " + authorization)
    lines.append(b"X-Forwarded-For: " + b", ".join((*forwarded, client)))
    lines.append(b"X-Forwarded-Proto: " + scheme)
    if asked_host:
        lines.append(b"X-Forwarded-Host: " + asked_host)
    lines.append(b"X-Request-ID: " + request_id)
    if length is not None:
        lines.append(b"Content-Length: %d" % length)
    if upgrade is not None:
        lines.append(b"Connection: Upgrade")
        lines.append(b"Upgrade: " + upgrade)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def response_head(
    status: int,
    reason: bytes,
    headers: Headers,
    extra: Iterable[tuple[bytes, bytes]],
    *,
    chunked: bool,
    close: bool,
    upgrade: bytes | None = None,
) -> bytes:
    """The head of the answer that goes to the client.

    :param headers: the backend's fields.
    :param extra: fields of the proxy's own, put last.
    :param chunked: the body is sent chunked; the backend's ``Content-Length``, if any, is kept otherwise.
    :param close: the connection ends with this answer.
    :param upgrade: the protocol that the connection switches to (status 101).
    """
    lines = [b"HTTP/1.1 %d %s" % (status, reason)]
    # RFC 9110 section 8.6: there is no length where there cannot be a body.
    dropped = _ANSWERED | {b"content-length"} if status in (101, 204) else _ANSWERED
    for key, value in end_to_end(headers, dropped):
        lines.append(key + b": " + value)
    for key, value in extra:
        lines.append(key + b": " + value)
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if upgrade is not None:
        lines.append(b"Connection: Upgrade")
        lines.append(b"Upgrade: " + upgrade)
    elif close:
        lines.append(b"Connection: close")
    lines.append(b"\r\n")
    return b"\r\n".join(lines)
