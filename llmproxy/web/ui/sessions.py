"""Who is signed in to the dashboard: in memory only, bounded, and forgotten when not used.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest

from attrs import define, field

__all__ = ["IDLE", "LONGEST", "MOST", "Session", "Sessions"]

IDLE = 12 * 3600.0
"""Seconds after which a session ends that nobody uses: a working day, and not the night."""

LONGEST = 7 * 86400.0
"""Seconds after which one ends in any case: a page that is left open uses it all the time."""

MOST = 100
"""Sessions at once; the one that was not used for longest makes room."""


@define(eq=False)
class Session:
    """One browser that is signed in.

    :ivar secret: the key that it signed in with; asked again with each request, so that a key that is taken
        away takes its sessions along.
    :ivar digest: of the session's id, which itself is known to the browser alone.
    :ivar began: POSIX seconds; ``used`` as well.
    """

    secret: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    began: float
    used: float


@define
class Sessions:
    """Those that are open.

    :ivar mint: makes an id that nobody can guess.
    """

    mint: Callable[[], str]
    idle: float = IDLE
    longest: float = LONGEST
    most: int = MOST
    _open: list[Session] = field(factory=list, init=False)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, secret: bytes, now: float) -> str:
        """Begin one.

        :return: its id.
        """
        self._forget(now)
        while len(self._open) >= self.most:
            self._open.remove(min(self._open, key=lambda one: one.used))
        token = self.mint()
        self._open.append(Session(secret, _digest(token), now, now))
        return token

    def find(self, token: str, now: float) -> Session | None:
        """The session with that id, which is in use from now on; all are compared, in constant time."""
        self._forget(now)
        digest, found = _digest(token), None
        for one in self._open:
            if compare_digest(one.digest, digest):
                found = one
        if found is not None:
            found.used = now
        return found

    def close(self, session: Session) -> None:
        """End one."""
        self._open = [one for one in self._open if one is not session]

    def _forget(self, now: float) -> None:
        self._open = [
            one for one in self._open if now - one.used < self.idle and now - one.began < self.longest
        ]


def _digest(token: str) -> bytes:
    # Of one length, so that comparing tells nothing of it.
    return sha256(token.encode("utf-8", "replace")).digest()
