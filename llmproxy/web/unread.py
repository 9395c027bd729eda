"""Bytes of a client's that make no request: how much they may be, and what is answered to them.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from llmproxy.errors import Refusal
from llmproxy.http.dialects import dialect_of, error_body
from llmproxy.http.openai import error_headers

__all__ = ["LARGEST_HEAD", "MOST_FIELDS", "closing_answer", "head_size", "head_too_large", "no_room"]

LARGEST_HEAD = 32 * 1024
"""Bytes of a request's head, its request line included; of its trailer; and of one chunk's extension."""

MOST_FIELDS = 200
"""Header fields of one request."""

_REASONS = {
    400: b"Bad Request",
    413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
    507: b"Insufficient Storage",
}


def head_size(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Bytes of a head."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def head_too_large() -> Refusal:
    """431."""
    return Refusal(
        431,
        "invalid_request",
        f"The head of the request has more than {LARGEST_HEAD // 1024} KiB or {MOST_FIELDS} fields.",
        kind="invalid_request_error",
    )


def no_room() -> Refusal:
    """507 (RFC 4918 section 11.5): the body is too large for memory, and the disk does not take it."""
    return Refusal(
        507,
        "error",
        "llmproxy has no room to keep the body of this request.",
        hint="Free space in the folder for temporary files (TMPDIR); llmproxy's log has the cause.",
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
