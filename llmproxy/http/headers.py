"""Header rules of the proxy: what is passed on, what is dropped, what is added.  Pure.

Names keep the case and order in which they came, since HTTP lets a proxy keep them (RFC 9110 section 5.3
allows no reordering of fields of one name).  Hop-by-hop fields are those of RFC 9110 section 7.6.1 with the
older ones that RFC 2616 section 13.5.1 named.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = [
    "HINTS",
    "HOP_BY_HOP",
    "NO_FIELDS",
    "SPELLINGS",
    "Fields",
    "authority",
    "is_event_stream",
    "is_json",
    "request_head",
    "response_head",
    "upgrade",
    "valid_request_id",
]

HOP_BY_HOP = frozenset(
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
"""Fields that are about a connection and not about a message (RFC 9110 section 7.6.1)."""

HINTS = frozenset(
    (b"x-llmproxy-max-wait", b"x-llmproxy-no-start", b"x-llmproxy-keep-alive", b"x-llmproxy-fallback")
)
"""Fields by which a client speaks to the proxy (:mod:`llmproxy.web.hints`)."""

SPELLINGS = {
    name.title(): name
    for name in (b"X-LLMProxy-Backend", b"X-LLMProxy-Cold-Start", b"X-LLMProxy-Fallback-For", b"X-Request-ID")
}
"""Fields of the proxy's own answers, by how libraries spell them that spell all names alike."""

# Fields of a request that are the proxy's own.  ``Expect`` has been answered by the front already.
_REWRITTEN = (
    HOP_BY_HOP
    | HINTS
    | {
        b"content-length",
        b"expect",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
    }
)

# What carries the client's key, which never reaches a backend; the last is how Azure's clients write it.
_CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key"))

# By whether the client's credentials are passed on, and whether its Host is.
_DROPPED = {
    (True, True): _REWRITTEN,
    (True, False): _REWRITTEN | {b"host"},
    (False, True): _REWRITTEN | _CREDENTIALS,
    (False, False): _REWRITTEN | _CREDENTIALS | {b"host"},
}

# Fields of a response that the proxy writes itself.
_ANSWERED = HOP_BY_HOP | {
    b"x-request-id",
    b"x-llmproxy-backend",
    b"x-llmproxy-cold-start",
    b"x-llmproxy-fallback-for",
}
_CORS = frozenset(
    b"access-control-" + name
    for name in (
        b"allow-credentials",
        b"allow-headers",
        b"allow-methods",
        b"allow-origin",
        b"allow-private-network",
        b"expose-headers",
        b"max-age",
    )
)

# By whether there can be a body, and whether it is the proxy that speaks of CORS; for most answers, with a
# body, it does not.
_NOT_PASSED_ON = {
    (False, False): _ANSWERED | {b"content-length"},
    (True, True): _ANSWERED | _CORS,
    (False, True): _ANSWERED | _CORS | {b"content-length"},
}

# Most of what ``Connection`` says; neither names a field that would not be dropped anyway.
_PLAIN_CONNECTIONS = frozenset((b"keep-alive", b"Keep-Alive", b"close"))

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Fields(dict[bytes, bytes]):
    """The header fields of one message: of each name, in lower case, the first value.

    Not to be changed once it is made.

    :ivar raw: names and values as they came, in their order.
    """

    __slots__ = ("_kept", "raw")

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw
        self._kept: tuple[frozenset[bytes], bytes] | None = None
        super().__init__({name.lower(): value for name, value in raw})
        if len(self) != len(raw):
            # The last one of a name has won; the first one shall.
            self.update((name.lower(), value) for name, value in reversed(raw))

    def changed(self, values: dict[bytes, bytes]) -> Fields:
        """The same with other values for some (lower-case) names, of which each is there once."""
        return Fields([(name, values.get(name.lower(), value)) for name, value in self.raw])

    def all(self, name: bytes) -> list[bytes]:
        """All values of this (lower-case) name."""
        return [value for key, value in self.raw if key.lower() == name]

    def connection_options(self) -> set[bytes]:
        """What ``Connection`` names, in lower case (RFC 9110 section 7.6.1)."""
        return {option.strip().lower() for value in self.all(b"connection") for option in value.split(b",")}

    def passed_on(self, dropped: frozenset[bytes]) -> bytes:
        """The lines that are for the far end: without ``dropped`` and without what ``Connection`` names."""
        if self._kept is None or self._kept[0] is not dropped:
            self._kept = (dropped, b"".join(self._lines(dropped)))
        return self._kept[1]

    def _lines(self, dropped: frozenset[bytes]) -> list[bytes]:
        connection = self.get(b"connection")
        if connection is not None and (connection not in _PLAIN_CONNECTIONS or len(self) != len(self.raw)):
            # ``Connection: content-length`` must not make a message lose its framing.
            options = {option.replace(b"_", b"-") for option in self.connection_options()}
            dropped = dropped | (options - {b"content-length", b"host"})
        # To a server behind CGI or WSGI, ``X_Forwarded_For`` is what ``X-Forwarded-For`` is.
        return [
            b"%b: %b\r\n" % field for field in self.raw if field[0].lower().replace(b"_", b"-") not in dropped
        ]


NO_FIELDS = Fields([])
"""Of a message that has not begun to come."""


def upgrade(fields: Fields) -> bytes | None:
    """The protocol that the client asks to switch to (RFC 9110, 7.8), such as ``websocket``, else None.

    Another HTTP, or TLS, is not asked for on a client's behalf: its requests would go past every check.
    """
    asked = fields.get(b"upgrade")
    if asked is None or b"upgrade" not in fields.connection_options():
        return None
    protocols = [protocol.strip().lower() for protocol in asked.split(b",")]
    return None if any(protocol.startswith((b"h2", b"http/", b"tls/")) for protocol in protocols) else asked


def is_event_stream(fields: Fields) -> bool:
    """The answer is ``text/event-stream``."""
    kind = fields.get(b"content-type")
    return kind is not None and kind.lower().startswith(b"text/event-stream")


def is_json(fields: Fields) -> bool:
    """The answer is ``application/json``, or of a kind that is written as such (RFC 6839 section 3.1)."""
    kind = fields.get(b"content-type")
    if kind == b"application/json":
        return True
    if kind is None:
        return False
    kind = kind.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def valid_request_id(value: bytes | None) -> bool:
    """Whether a client's request id may be used: printable ASCII without spaces, at most 128 bytes."""
    return value is not None and _REQUEST_ID.fullmatch(value) is not None


# As many as there are backends and tasks at a time: each run of a process has another port.
@lru_cache(maxsize=256)
def authority(host: str, port: int, default_port: int) -> bytes:
    """``Host`` for a backend: brackets around IPv6, the port unless it is the scheme's own."""
    name = f"[{host}]" if ":" in host else host
    return name.encode("ascii") if port == default_port else b"%s:%d" % (name.encode("ascii"), port)


def request_head(
    method: bytes,
    target: bytes,
    fields: Fields,
    *,
    client: bytes,
    scheme: bytes,
    request_id: bytes,
    length: int | None,
    host: bytes | None = None,
    asked: bytes | None = None,
    authorization: bytes | None = None,
    passthrough: bool = False,
    upgrade: bytes | None = None,
) -> bytes:
    """The head of the request that goes to the backend.

    :param target: request target in origin form, raw.
    :param client: the client's address.  What the request says itself of that was believed or not before.
    :param length: bytes of the body; ``None`` when the request has none.
    :param host: ``Host`` to send; ``None`` keeps the client's.
    :param asked: the ``Host`` that was asked for, where that was told; ``None``: what the request says.
    :param authorization: the backend's own ``Authorization`` value.
    :param passthrough: keep the client's credentials.
    :param upgrade: the protocol that the connection shall switch to.
    """
    head = b"%b %b HTTP/1.1\r\n" % (method, target)
    if host is not None:
        head += b"Host: %b\r\n" % host
    head += fields.passed_on(_DROPPED[passthrough, host is None])
    if authorization is not None and not passthrough:
        head += b"Authorization: %b\r\n" % authorization
    asked = fields.get(b"host") if asked is None else asked
    if asked:
        head += b"X-Forwarded-Host: %b\r\n" % asked
    head += b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Request-ID: %b\r\n" % (
        client,
        scheme,
        request_id,
    )
    if length is not None:
        head += b"Content-Length: %d\r\n" % length
    if upgrade is not None:
        head += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade
    return head + b"\r\n"


def response_head(
    status: int,
    reason: bytes,
    fields: Fields,
    own: bytes,
    *,
    chunked: bool,
    close: bool,
    upgrade: bytes | None = None,
    cors: bool = False,
) -> bytes:
    """The head of the answer that goes to the client.

    :param fields: those of the backend.
    :param own: the proxy's own lines, each with its end; put after those.
    :param chunked: the body is sent chunked; the backend's ``Content-Length``, if any, is kept otherwise.
    :param close: the connection ends with this answer.
    :param upgrade: the protocol that the connection switches to (status 101).
    :param cors: the proxy speaks of CORS, and the backend does not.
    """
    # RFC 9110 section 8.6: there is no length where there cannot be a body.
    plain = not cors and status not in (101, 204)
    kept = fields.passed_on(_ANSWERED if plain else _NOT_PASSED_ON[status not in (101, 204), cors])
    if chunked:
        own += b"Transfer-Encoding: chunked\r\n"
    if upgrade is not None:
        own += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade
    elif close:
        own += b"Connection: close\r\n"
    return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, reason, kept, own)
