"""Requests that must not start a backend: held while it is ready, as it may be full, and no longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmproxy.backend.surroundings import Event, Transition
from llmproxy.errors import not_running

if TYPE_CHECKING:
    from llmproxy.backend.backend import Backend
    from llmproxy.fleet.fleet import Fleet
    from llmproxy.web.exchange import Exchange

__all__ = ["Staying"]


class Staying:
    """Refuses a held request as soon as its backend is not ready any more: it would be started again for it.

    Ends as a timer does, see :class:`twisted.internet.interfaces.IDelayedCall`.
    """

    def __init__(self, fleet: Fleet, exchange: Exchange, backend: Backend) -> None:
        self._exchange = exchange
        self._backend = backend
        self._unfollow: Callable[[], None] | None = fleet.follow(self._heard)

    def active(self) -> bool:
        """Whether it still looks."""
        return self._unfollow is not None

    def cancel(self) -> None:
        """Look no more."""
        unfollow, self._unfollow = self._unfollow, None
        if unfollow is not None:
            unfollow()

    def _heard(self, event: Event) -> None:
        backend = self._backend
        if isinstance(event, Transition) and event.backend == backend.name and event.new != "ready":
            self.cancel()
            backend.leave(self._exchange)
            self._exchange.refused(not_running(event.new).about(backend.name))
