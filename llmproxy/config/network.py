"""Who is in front of the proxy, and by which names it is reached.  Pure."""

from __future__ import annotations

import re
from typing import Any

from llmproxy.http.forwarded import TrustedProxies
from llmproxy.http.hosts import HOST_PATTERN

__all__ = ["HOST_PATTERN", "PROXY_PATTERN", "allowed_hosts", "commas", "trusted_proxies"]

_BYTE = r"(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"

PROXY_PATTERN = (
    rf"^(unix|({_BYTE}\.){{3}}{_BYTE}(/(3[0-2]|[12]?[0-9]))?"
    r"|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$"
)
"""An address or a network; which IPv6 addresses there are is beyond a pattern."""


def trusted_proxies(value: Any) -> tuple[str, ...]:
    """Reads a list of addresses and networks.

    :raises ValueError: it says what is allowed.
    """
    allowed = "a list of addresses and networks such as 127.0.0.1 or 10.0.0.0/8, or unix"
    words = _words(value, PROXY_PATTERN, allowed)
    try:
        TrustedProxies(words)
    except ValueError:
        raise ValueError(allowed) from None
    return words


def allowed_hosts(value: Any) -> tuple[str, ...]:
    """Reads a list of names.

    :raises ValueError: it says what is allowed.
    """
    words = _words(
        value, HOST_PATTERN, "a list of names without a port, such as llm.example.com, *.example.com or *"
    )
    return tuple(word.lower() for word in words)


def commas(text: str) -> list[str]:
    """A list as it is written in the environment."""
    return [word.strip() for word in text.split(",")]


def _words(value: Any, pattern: str, allowed: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(allowed)
    if not all(isinstance(word, str) and re.search(pattern, word) for word in value):
        raise ValueError(allowed)
    return tuple(map(str, value))
