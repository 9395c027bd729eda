"""By which names a browser may have reached the proxy: the guard against DNS rebinding.  Pure.

A page of somebody else's can have its own name lead to this machine, and is then of one origin with what
answers here: the browser keeps nothing from it.  It cannot have the browser send another name in ``Host``,
though.  So what a page could do without knowing a key is done only for names that no stranger can own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmproxy.errors import Refusal, not_allowed

__all__ = ["HOST_PATTERN", "Hosts"]

HOST_PATTERN = (
    r"^(\*|(\*\.)?[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*)$"
)
"""A name, ``*.`` and one for all names below it, or ``*`` for every name."""

_ADDRESS = re.compile(r"\[[0-9a-f:.]+(%25[0-9a-z.~_-]+)?\]|[0-9]{1,3}(\.[0-9]{1,3}){3}")
"""To an address nothing can be rebound."""

_RESERVED = (".localhost", ".local", ".home.arpa", ".docker.internal")
"""Names that no DNS of the internet answers for: RFC 6761, RFC 6762, RFC 8375, and Docker Desktop's own."""


class Hosts:
    """The names that are taken.

    A name without a dot (``localhost``, a machine's or a Compose service's) is always among them: no page of
    the internet is served from one.

    :param words: further ones, of :data:`HOST_PATTERN`.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        lower = {word.lower() for word in words}
        self._all = "*" in lower
        self._names = frozenset(word for word in lower if not word.startswith("*"))
        self._below = (*_RESERVED, *(word[1:] for word in sorted(lower) if word.startswith("*.")))

    def take(self, host: bytes | None) -> bool:
        """Whether a request for that ``Host`` may be served; every browser sends one."""
        if self._all or not host:
            return True
        written = host.decode("latin-1").strip().lower()
        name = written if written.endswith("]") else re.sub(r":[0-9]*$", "", written)
        if _ADDRESS.fullmatch(name):
            return True
        name = name.removesuffix(".")
        if re.search(r"[^a-z0-9._-]", name):
            return False
        return "." not in name or name in self._names or name.endswith(self._below)

    def require(self, host: bytes | None) -> None:
        """Refuse a request for another name.

        :raises llmproxy.errors.Refusal: ``not_allowed``.
        """
        if not self.take(host):
            raise _refusal((host or b"")[:200].decode("latin-1"))


def _refusal(host: str) -> Refusal:
    name = re.sub(r":[0-9]*$", "", host)
    return not_allowed(
        f"This is not served under the name {host!r}, which any page could have lead here.",
        hint=f"If that name is yours, add {name!r} to allowed_hosts in llmproxy.yaml.",
    )
