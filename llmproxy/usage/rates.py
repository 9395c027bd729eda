"""Tokens per second, for whoever looks at them now and then.  Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from attrs import define, field

__all__ = ["WINDOW", "Rates"]

WINDOW = 10.0
"""Seconds over which a rate is told."""

_APART = 0.5
"""Seconds between the counts that are kept: a page that looks more often gets the same window."""


@define(eq=False)
class Rates:
    """Remembers what was counted when it was looked at last."""

    _seen: deque[tuple[float, Mapping[str, float]]] = field(factory=deque)

    def tell(self, now: float, counted: Mapping[str, float]) -> dict[str, float]:
        """What has come in a second since the earlier look that is some :data:`WINDOW` seconds old.

        :param now: seconds of any clock.
        :param counted: what there was in all, by name.
        :return: of names that had something; empty at the first look.
        """
        while self._seen and self._seen[0][0] < now - WINDOW - _APART:
            self._seen.popleft()
        found: dict[str, float] = {}
        if self._seen and now > self._seen[0][0]:
            since, before = self._seen[0]
            for name, count in counted.items():
                grown = count - before.get(name, 0.0)
                if grown > 0:
                    found[name] = round(grown / (now - since), 1)
        if not self._seen or now >= self._seen[-1][0] + _APART:
            self._seen.append((now, dict(counted)))
        return found
