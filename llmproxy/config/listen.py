"""Keeps a proxy without keys to its own machine.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmproxy.errors import ConfigError

__all__ = ["loopback"]

_POSITIONS = {"tcp": 2, "tcp6": 3, "ssl": 5}
"""How many positional parts, the kind counted, stand before the interface (``twisted.internet.endpoints``);
what stands behind it is left to its default."""

_LOCAL = ("unix", "systemd", "fd", "stdio")
"""Kinds whose reach is decided elsewhere: by the mode of a file, by systemd, or by whoever hands it over."""


def loopback(listen: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Every endpoint on the loopback interface alone, and the remark that says so.

    Without a key, whoever reaches the proxy may do everything.

    :param listen: Twisted endpoint strings.
    :raises llmproxy.errors.ConfigError: one of them cannot be kept to it.
    """
    note = "no key is configured (VLLM_API_KEY): listening on loopback only"
    return tuple(_bound(description) for description in listen), note


def _bound(description: str) -> str:
    kind, _, rest = description.partition(":")
    if kind == "haproxy":  # a wrapper around another endpoint
        return f"haproxy:{_bound(rest)}"
    if kind in _LOCAL:
        return description
    if kind not in _POSITIONS:
        raise ConfigError(
            f"listen: {description!r} cannot be kept to loopback, and no key is configured;"
            " set VLLM_API_KEY, or use tcp:, tcp6:, ssl:, unix: or systemd:"
        )
    # A part ends at a colon that no backslash stands before.
    parts = re.findall(r"(?:^|:)((?:\\.|[^:\\])*)", description)
    named = [part for part in parts if re.search(r"(?<!\\)=", part)]
    plain = [part for part in parts if part not in named][: _POSITIONS[kind]]
    kept = (*plain, *(part for part in named if not part.startswith("interface=")))
    return ":".join((*kept, "interface=" + ("\\:\\:1" if kind == "tcp6" else "127.0.0.1")))
