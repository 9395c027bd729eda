"""How long each backend has had its GPUs.  Pure."""

from __future__ import annotations

from attrs import define, field

__all__ = ["HOLDING", "Occupancy"]

HOLDING = frozenset(("starting", "ready", "draining", "falling_asleep", "waking", "stopping"))
"""States in which a backend has its memory; one that sleeps has given most of it back."""


@define(eq=False)
class Occupancy:
    """Measures it."""

    _since: dict[str, float] = field(factory=dict)

    def moved(self, backend: str, state: str, at: float) -> float:
        """It is in another state.

        :param at: since when (POSIX seconds).
        :return: when it has its GPUs no more: the seconds that it had them and that were not told yet.
        """
        if state in HOLDING:
            self._since.setdefault(backend, at)
            return 0.0
        since = self._since.pop(backend, None)
        return 0.0 if since is None else max(0.0, at - since)

    def told(self, now: float) -> dict[str, float]:
        """The same of all that have their GPUs now; what follows counts from now on."""
        found = {backend: max(0.0, now - since) for backend, since in self._since.items()}
        self._since = dict.fromkeys(self._since, now)
        return found

    @property
    def backends(self) -> tuple[str, ...]:
        """Those that have theirs."""
        return tuple(self._since)
