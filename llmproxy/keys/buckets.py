"""A token bucket: so much in a minute, and as much at once.  Pure."""

from __future__ import annotations

from attrs import define, field

__all__ = ["MINUTE", "Bucket"]

MINUTE = 60.0


@define
class Bucket:
    """Holds what may be spent, and fills again evenly.

    It is full at first, so that a minute's worth may come at once; over any longer time it is never more than
    that beyond the rate.  What is spent may be more than there is, where it is known only afterwards: then it
    has to fill up first.

    :ivar size: what it holds, and what flows in within a minute.
    :ivar at: when ``level`` was so (seconds of any clock).
    """

    size: float
    at: float
    level: float = field()

    @level.default
    def _full(self) -> float:
        return self.size

    def look(self, now: float) -> float:
        """What may be spent now."""
        # A clock that was set back fills nothing and empties nothing.
        passed = max(0.0, now - self.at)
        self.at = now
        self.level = min(self.size, self.level + passed * self.size / MINUTE)
        return self.level

    def spend(self, amount: float, now: float) -> None:
        """It is gone, be there so much or not."""
        self.look(now)
        self.level -= amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until there is so much, if nobody takes anything meanwhile; 0: there is.

        :param amount: at most the size.
        """
        missing = min(amount, self.size) - self.look(now)
        return max(0.0, missing) * MINUTE / self.size

    def resize(self, size: float, now: float) -> None:
        """It holds another amount from now on; what was spent of it stays spent."""
        if size != self.size:
            spent = self.size - self.look(now)
            self.size = size
            self.level = size - spent
