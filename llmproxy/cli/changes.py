"""When something has changed: the proxy's events, followed in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llmproxy.cli.client import Api, ApiError

__all__ = ["Bell"]

# Not at once: a proxy that is being started again is away for a second or two.
RETRY = 1.0


class Bell:
    """Rings when something has changed, and when a proxy that was away is back: that one is asked again and
    again, until the bell is closed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._rung = threading.Event()
        self._over = threading.Event()
        self._end: Callable[[], None] | None = None
        self._following = threading.Thread(target=self._follow, daemon=True)
        self._following.start()

    def ring(self) -> None:
        """Something has changed."""
        self._rung.set()

    def wait(self, seconds: float) -> bool:
        """Wait until it rings, for so many seconds at most; tells whether it has."""
        rung = self._rung.wait(seconds)
        self._rung.clear()
        return rung

    def close(self) -> None:
        """Nobody waits any more: its connection is closed, however silent it is."""
        self._over.set()
        if self._end is not None:
            self._end()

    def _follow(self) -> None:
        while not self._over.is_set():
            try:
                for _ in self._api.events(tail=0, follow=True, can_end=self._can_end):
                    self.ring()
            except ApiError:
                pass
            if not self._over.wait(RETRY):
                self.ring()

    def _can_end(self, end: Callable[[], None]) -> None:
        self._end = end
        if self._over.is_set():
            end()
