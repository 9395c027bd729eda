"""For how long clients want a backend kept after their requests.  Pure."""

from __future__ import annotations

from attrs import define

__all__ = ["Lingering"]


@define
class Lingering:
    """What clients have asked for since it became ready.

    What one was promised holds whatever the others ask for; beyond that, whoever came last decides.

    :ivar until: it is not idle before that (reactor seconds).
    """

    until: float = 0.0
    _asked: tuple[float, float] | None = None

    def ask(self, seconds: float, used_at: float) -> None:
        """A request asks for it.

        :param used_at: when that request ended.
        """
        self._asked = (used_at, seconds)
        self.until = max(self.until, used_at + seconds)

    def limit(self, used_at: float, otherwise: float) -> float:
        """Seconds after which it is idle.

        :param used_at: when the last request ended, be it one that asks for something or not.
        """
        return self._asked[1] if self._asked is not None and self._asked[0] == used_at else otherwise

    def over(self) -> None:
        """It begins anew."""
        self.until, self._asked = 0.0, None
