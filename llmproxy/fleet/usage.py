"""Writes down when a backend was used."""

from __future__ import annotations

from attrs import define

from llmproxy.fleet.history import History

__all__ = ["PAUSE", "Usage"]

PAUSE = 20.0
"""Seconds without use that part one period of use from the next; requests of one moment are one use."""


@define
class Usage:
    """The use of one backend."""

    _history: History
    _backend: str
    _since: float | None = None
    _last: float = 0.0

    def noted(self, now: float) -> None:
        """It was used until now (POSIX seconds)."""
        if self._since is None:
            self._since = now
        elif now - self._last > PAUSE:
            self._history.used(self._backend, self._since, self._last)
            self._since = now
        self._last = now

    def over(self) -> None:
        """It has been used for the last time until it runs again."""
        since, self._since = self._since, None
        if since is not None:
            self._history.used(self._backend, since, self._last)
