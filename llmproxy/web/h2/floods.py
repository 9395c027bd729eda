"""What a client may do that costs us something and gets it nothing: so much at once, and a second.  Pure.

No single frame of these is wrong, and so each must be allowed; what is counted is how many there are.
CVE-2023-44487 (streams opened and reset), CVE-2025-8671 (streams that we are made to reset), CVE-2019-9512
(PING),
-9515 (SETTINGS), -9518 (empty DATA), -9513 (PRIORITY), and the like.
"""

from __future__ import annotations

from attrs import define

__all__ = ["Bucket", "Floods"]


@define
class Bucket:
    """Something that may be had so many times at once, and so many times a second.

    :ivar most: at once.
    :ivar rate: a second.
    """

    most: float
    rate: float
    _left: float = -1.0
    _at: float = 0.0

    def take(self, now: float, count: float = 1.0) -> bool:
        """Have it once more, or not."""
        left = self.most if self._left < 0 else min(self.most, self._left + (now - self._at) * self.rate)
        self._at = max(self._at, now)
        self._left = max(0.0, left - count)
        return left >= count


@define
class Floods:
    """What one connection has had.

    :ivar resets: of streams that were not answered yet, by whichever side; who stops generating now and then
        needs a few.
    :ivar idle: frames that have nothing to do with a request: PING, SETTINGS, PRIORITY, empty or unknown
        ones.
    :ivar updates: of windows, beyond those that what was sent is reason for.
    """

    resets: Bucket
    idle: Bucket
    updates: Bucket

    @classmethod
    def usual(cls) -> Floods:
        """What no client has been seen to need."""
        return cls(Bucket(200, 20), Bucket(1000, 50), Bucket(2000, 200))
