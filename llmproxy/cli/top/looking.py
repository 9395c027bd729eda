"""What the screen shows, asked of the proxy in one go."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmproxy.cli.client import Api, ApiError

__all__ = ["Seen", "look"]

# As many as any terminal has lines for.
MOST_REQUESTS = 100


class Seen(NamedTuple):
    """The proxy at one moment.

    :ivar at: POSIX seconds.
    :ivar requests: those that are open and those that are over; None: this proxy does not tell.
    """

    at: float
    backends: Sequence[Mapping[str, Any]]
    gpus: Sequence[Mapping[str, Any]]
    leases: Sequence[Mapping[str, Any]]
    requests: Mapping[str, Any] | None

    def backend(self, name: str | None) -> Mapping[str, Any] | None:
        """One of them."""
        return next((backend for backend in self.backends if backend["name"] == name), None)

    def view(self) -> dict[str, Any]:
        """What --json shows."""
        return self._asdict()


def look(api: Api) -> Seen:
    """All of it.

    :raises llmproxy.cli.client.ApiError: the proxy is away, or refuses.
    """
    backends, gpus, leases = api.backends(), api.gpus().get("gpus") or [], api.leases()
    return Seen(time.time(), backends, gpus, leases, _requests(api))


def _requests(api: Api) -> dict[str, Any] | None:
    try:
        return api.requests(MOST_REQUESTS)
    except ApiError as wrong:
        # An older proxy has no such path, and one whose disk is full cannot read what it has kept.
        if wrong.status in (404, 503):
            return None
        raise
