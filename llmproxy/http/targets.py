"""What a request asks for, and of whom: what two servers could read differently is refused.

The front takes a path as it came and hands it on as it came; it may be decoded, cut and put together by
whoever gets it.  So what could climb out of its route that way, in whatever spelling, does not come in, nor
what is no URL (RFC 3986) and would be mended differently by different servers.  Pure.
"""

from __future__ import annotations

import re

from llmproxy.errors import Refusal, invalid_request

__all__ = ["check_host", "checked_target", "target_too_long"]

_HOST = re.compile(
    rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})"  # a name, or an IPv4 address
    rb"|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._~%-]{1,32})?\])"  # IPv6, with a zone
    rb"(?::[0-9]{0,5})?"
)

_USUAL_PORT = re.compile(rb":(?:80|443)?\Z")

_SCHEME = re.compile(rb"https?://", re.IGNORECASE)

_ODD = re.compile(rb"[%\\]|\.\.|#")
"""What most paths have none of, and are taken as they are."""

_NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

_NEVER = re.compile(
    rb"%(?:00"  # ends a text for whoever is written in C
    # UTF-8 that is longer than need be (RFC 3629 section 3): "/" and "." for decoders of old
    rb"|c[01]|e0%[89]|f0%8)",
    re.IGNORECASE,
)

_DOT, _SLASH = re.compile(rb"%2e", re.IGNORECASE), re.compile(rb"%2f|%5c|\\", re.IGNORECASE)


def check_host(host: bytes | None, count: int = 1) -> None:
    """``Host`` of a request.

    :param host: the first one; None when it has none.
    :param count: how many there are.
    :raises llmproxy.errors.Refusal: it is not one host, with or without a port.
    """
    if count > 1:
        # One server would read the first and another the last.
        raise invalid_request("The request has more than one Host.")
    if host is not None and _HOST.fullmatch(host) is None:
        raise invalid_request("Host must be a name or an address, with or without a port.")


def checked_target(target: bytes, host: bytes | None) -> bytes:
    """The target of a request in origin form; ``*`` and what is no path are left for who answers them.

    :param host: what the request's ``Host`` says.
    :raises llmproxy.errors.Refusal: it is ambiguous.
    """
    if target.startswith(b"/"):
        if _ODD.search(target) is None:
            return target
    else:
        scheme = _SCHEME.match(target)
        if scheme is None:
            return target
        target = _origin_form(target[scheme.end() :], host)
    path = target.partition(b"?")[0]
    if _ODD.search(path) is not None:
        _check_path(path)
    if b"#" in target:
        # RFC 9112 section 3.2 has no fragment there; servers that cut it off (uvicorn) would see another path
        # than the one that is guarded here.
        raise invalid_request("The request target must have no fragment.")
    return target


def _origin_form(rest: bytes, host: bytes | None) -> bytes:
    """Of the absolute form (RFC 9112 section 3.2.2) behind its scheme."""
    end = min((at for at in map(rest.find, (b"/", b"?", b"#")) if at >= 0), default=len(rest))
    authority = rest[:end]
    if _HOST.fullmatch(authority) is None:
        raise invalid_request("The request target must name a host, and no user.")
    if host is not None and _bare(authority) != _bare(host):
        # The target's would count, and the backend goes by the other one.
        raise invalid_request("The request target and Host name different hosts.")
    rest = rest[end:]
    return rest if rest.startswith(b"/") else b"/" + rest


def _bare(authority: bytes) -> bytes:
    """Without a port that goes without saying."""
    return _USUAL_PORT.sub(b"", authority.lower())


def _check_path(path: bytes) -> None:
    if b"%" in path:
        if _NO_ESCAPE.search(path) is not None:
            raise invalid_request("The path has a % that is not followed by two hexadecimal digits.")
        if _NEVER.search(path) is not None:
            raise invalid_request("The path has an encoded NUL or overlong UTF-8.")
    depth = 0
    for segment in _SLASH.sub(b"/", path).split(b"/"):
        # Some servers (Tomcat) take no notice of what is behind a semicolon.
        name = _DOT.sub(b".", segment.partition(b";")[0])
        if name == b"..":
            depth -= 1
            if depth < 1:
                raise invalid_request("The path leads out of its first segment by '..'.")
        elif name not in (b"", b"."):
            depth += 1


def target_too_long(most: int) -> Refusal:
    """414."""
    return Refusal(
        414,
        "invalid_request",
        f"The request target is longer than {most} bytes.",
        kind="invalid_request_error",
        hint="Send less in the query, or raise limits.max_target in llmproxy.yaml.",
    )
