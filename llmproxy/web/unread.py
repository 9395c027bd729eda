"""Bytes of a client's that make no request: how much they may be, and what is answered to them.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from llmproxy.config.model import Limits
from llmproxy.errors import Refusal
from llmproxy.http.dialects import dialect_of, error_body
from llmproxy.http.openai import error_headers

__all__ = [
    "closing_answer",
    "head_size",
    "head_too_large",
    "no_room",
    "too_many_connections",
    "too_many_of_one",
    "too_slow",
]

_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
    507: b"Insufficient Storage",
}


def head_size(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Bytes of a head."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def head_too_large(limits: Limits) -> Refusal:
    """431."""
    return Refusal(
        431,
        "invalid_request",
        f"The head of the request has more than {limits.max_head} bytes or {limits.max_fields} fields.",
        kind="invalid_request_error",
        hint="Send less, or raise limits.max_head or limits.max_fields in llmproxy.yaml.",
    )


def too_slow(what: str, setting: str) -> Refusal:
    """408: the request has not come in the time that it had.

    :param what: of the request.
    :param setting: what bounds it.
    """
    return Refusal(
        408,
        "invalid_request",
        f"The {what} of the request did not come in time.",
        kind="invalid_request_error",
        hint=f"Send it faster, or raise {setting} in llmproxy.yaml.",
    )


def too_many_connections(limit: int) -> Refusal:
    """503: there are as many connections as may be."""
    return Refusal(
        503,
        "too_many_connections",
        f"llmproxy serves {limit} connections at once, and they are all taken.",
        hint="Try again, use fewer connections, or raise limits.max_connections in llmproxy.yaml.",
        retry_after=5,
    )


def too_many_of_one(limit: int) -> Refusal:
    """429: this client has as many connections as it may."""
    return Refusal(
        429,
        "too_many_connections",
        f"llmproxy serves {limit} connections of one address at once.",
        kind="rate_limit_error",
        hint="Use fewer connections, or raise limits.max_connections_per_address in llmproxy.yaml.",
        retry_after=5,
    )


def no_room(bound: str = "") -> Refusal:
    """507 (RFC 4918 section 11.5): the body is too large for memory, and the disk does not take it.

    :param bound: what it would have been too much of; else it was the file system that took no more.
    """
    return Refusal(
        507,
        "error",
        bound or "llmproxy has no room to keep the body of this request.",
        hint="Try again, or raise limits.body_disk in llmproxy.yaml."
        if bound
        else "Free space in the folder for temporary files (TMPDIR); llmproxy's log has the cause.",
        retry_after=30,
    )


def closing_answer(refusal: Refusal, request_id: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Head and body of an answer outside of any resource, after which the connection ends.

    :param target: what was asked for, as far as that has come.
    """
    body = error_body(dialect_of(target), refusal)
    fields = [
        *error_headers(refusal),
        (b"Content-Length", b"%d" % len(body)),
        (b"X-Request-ID", request_id),
        (b"X-LLMProxy-Backend", b"-"),
        (b"X-LLMProxy-Cold-Start", b"0.000"),
        (b"Connection", b"close"),
    ]
    first = b"HTTP/1.1 %d %b" % (refusal.status, _REASONS.get(refusal.status, b"Error"))
    return b"\r\n".join([first, *(b"%b: %b" % field for field in fields), b"\r\n"]), body
