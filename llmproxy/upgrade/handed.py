"""What the old process tells the new one of a request that it hands over, in a header field.  Pure.

It is believed only on a connection that nobody else can have; on any other one it is a field like others.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

from llmproxy.http.forwarded import Origin
from llmproxy.http.headers import HOP_BY_HOP, SPELLINGS, Fields

__all__ = ["FIELD", "Handed", "handed_head", "own_lines", "read_handed", "without"]

FIELD = b"x-llmproxy-handed"

_DROPPED = HOP_BY_HOP | {b"content-length", b"expect", b"x-request-id", FIELD}


@frozen
class Handed:
    """What is told of a request.

    :ivar origin: where it is from.
    :ivar arrived: since when it is here (POSIX seconds).
    :ivar key: name of the key that it was accepted with; None: nobody has looked at that yet.
    """

    origin: Origin
    arrived: float
    key: str | None = None


def handed_head(
    method: bytes,
    target: bytes,
    fields: Fields,
    handed: Handed,
    *,
    request_id: bytes,
    length: int | None,
    upgrade: bytes | None,
) -> bytes:
    """The head of the request as the new process gets it: all that the client has said, and what is known.

    :param length: bytes of the body; None: it has none.
    :param upgrade: the protocol that the client asks to switch to.
    """
    told: dict[str, Any] = {
        "client": handed.origin.client,
        "for": handed.origin.forwarded_for.decode("latin-1"),
        "secure": handed.origin.secure,
        "arrived": handed.arrived,
    }
    if handed.origin.host is not None:
        told["host"] = handed.origin.host.decode("latin-1")
    if handed.key is not None:
        told["key"] = handed.key
    head = b"%b %b HTTP/1.1\r\n%bX-Request-ID: %b\r\n%b: %b\r\n" % (
        method,
        target,
        fields.passed_on(_DROPPED),
        request_id,
        FIELD,
        json.dumps(told).encode("ascii"),
    )
    if b"host" not in fields:
        # HTTP/1.0 may have none.
        head += b"Host: -\r\n"
    if length is not None:
        head += b"Content-Length: %d\r\n" % length
    if upgrade is not None:
        head += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade
    return head + b"\r\n"


def read_handed(fields: Fields) -> Handed:
    """What was told.

    :raises ValueError: nothing was, or nothing that can be understood.
    """
    try:
        told = json.loads(fields[FIELD])
        host = told.get("host")
        origin = Origin(
            str(told["client"]),
            str(told["for"]).encode("latin-1"),
            bool(told["secure"]),
            None if host is None else str(host).encode("latin-1"),
        )
        key = told.get("key")
        return Handed(origin, float(told["arrived"]), None if key is None else str(key))
    except (KeyError, TypeError, AttributeError) as cause:
        raise ValueError(f"not understood: {cause}") from cause


def without(fields: Fields) -> Fields:
    """The fields as the client has sent them."""
    return Fields([(name, value) for name, value in fields.raw if name.lower() != FIELD])


def own_lines(fields: Fields) -> bytes:
    """What the new process says of its own in the head of an answer, to be passed on as it is."""
    return b"".join(
        b"%b: %b\r\n" % (name, fields[name.lower()]) for name in SPELLINGS.values() if name.lower() in fields
    )
