"""Wrong keys, by the address that they come from: each further one doubles the wait for the next try.  Pure.

Keys are too long to be guessed; this is against those who try all the same, and against clients that never
stop asking with an old key.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define, field

__all__ = ["FREE", "LONGEST_WAIT", "Guard"]

FREE = 30
"""Wrong keys before one has to wait: programs that begin with an old key ask many times at once."""

FORGIVEN = 10.0
"""Seconds after which one of them is forgotten."""

LONGEST_WAIT = 60.0
"""Seconds that somebody has to wait at most, however often they have failed."""

MOST = 4096
"""Addresses that are remembered, and pairs of address and right key; the oldest are forgotten."""


@define(eq=False)
class Guard:
    """Remembers who has failed."""

    free: int = FREE
    longest: float = LONGEST_WAIT
    most: int = MOST
    _failed: OrderedDict[str, tuple[int, float]] = field(factory=OrderedDict, init=False)
    # Behind a NAT, or a reverse proxy, many have one address: who has shown a right key goes on using it.
    _right: OrderedDict[tuple[str, bytes], None] = field(factory=OrderedDict, init=False)

    def wait(self, who: str, digest: bytes, now: float) -> float:
        """Seconds until a key from there is looked at again; 0: at once.

        :param who: the address.
        :param digest: of the key that is shown.
        """
        _, last = self._failed.get(who, (0, now))
        count = self._counted(who, now)
        if count < self.free or (who, digest) in self._right:
            return 0.0
        # A clock that was set back must not lock anybody out for longer than the wait itself.
        wait = min(self.longest, 2.0 ** min(count - self.free, 30))
        return max(0.0, min(wait, last + wait - now))

    def _counted(self, who: str, now: float) -> int:
        count, last = self._failed.get(who, (0, now))
        return max(0, count - int(max(0.0, now - last) / FORGIVEN))

    def failed(self, who: str, now: float) -> None:
        """It was a wrong key."""
        self._failed[who] = (self._counted(who, now) + 1, now)
        self._failed.move_to_end(who)
        while len(self._failed) > self.most:
            self._failed.popitem(last=False)

    def succeeded(self, who: str, digest: bytes) -> None:
        """It was a right one."""
        self._right[who, digest] = None
        self._right.move_to_end((who, digest))
        while len(self._right) > self.most:
            self._right.popitem(last=False)

    def forget(self) -> None:
        """The keys are others now."""
        self._right.clear()
