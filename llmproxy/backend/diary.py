"""Writes down of one backend what is learned from, and when it was used."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import define

from llmproxy.scheduling.history import History
from llmproxy.scheduling.learned import Learned

__all__ = ["PAUSE", "Diary"]

PAUSE = 20.0
"""Seconds without use that part one period of use from the next; requests of one moment are one use."""


@define
class Diary:
    """Of one backend.

    :param fingerprint: of its present configuration.
    """

    _backend: str
    _learned: Learned
    _history: History
    _fingerprint: Callable[[], str]
    _since: float | None = None
    _last: float = 0.0

    def used(self, now: float) -> None:
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

    def started(self, now: float, phases: Mapping[str, float]) -> None:
        """It is ready by a start of ours, which had these phases (seconds)."""
        self._learned.started(self._backend, self._fingerprint(), phases, sum(phases.values()))
        self._history.started(self._backend, now)

    def slept(self, seconds: float) -> None:
        """It fell asleep in so many seconds."""
        self._learned.slept(self._backend, self._fingerprint(), seconds)

    def woke(self, now: float, level: int, seconds: float) -> None:
        """It woke from a sleep of that level."""
        self._learned.woke(self._backend, self._fingerprint(), level, seconds)
        self._history.woken(self._backend, now)

    def stopped(self, seconds: float) -> None:
        """It ended in so many seconds."""
        self._learned.stopped(self._backend, self._fingerprint(), seconds)
