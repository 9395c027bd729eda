"""When something has changed: the proxy's events, followed in a thread of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llmproxy.cli.client import Api, ApiError

__all__ = ["Bell", "follow"]

# Not at once: a proxy that is being started again is away for a second or two.
RETRY = 1.0


def follow(api: Api, changed: Callable[[], object]) -> None:
    """Call ``changed``, in another thread, whenever something has happened and when the proxy is back again.

    The thread ends with the program.  A proxy that is away is asked again and again.
    """
    threading.Thread(target=_follow, args=(api, changed), daemon=True).start()


def _follow(api: Api, changed: Callable[[], object]) -> None:
    while True:
        try:
            for _ in api.events(tail=0, follow=True):
                changed()
        except ApiError:
            pass
        time.sleep(RETRY)
        changed()


class Bell:
    """Rings when something has changed."""

    def __init__(self, api: Api) -> None:
        self._rung = threading.Event()
        follow(api, self.ring)

    def ring(self) -> None:
        """Something has changed."""
        self._rung.set()

    def wait(self, seconds: float) -> bool:
        """Wait until it rings, for so many seconds at most; tells whether it has."""
        rung = self._rung.wait(seconds)
        self._rung.clear()
        return rung
