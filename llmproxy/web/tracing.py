"""What a request tells of itself to whoever traces it; :mod:`llmproxy.observe.spans` does.  Pure.

Nobody does unless it was asked for: ``site.tracer`` is None then, and that is all it costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llmproxy.http.headers import Fields

if TYPE_CHECKING:
    from llmproxy.web.accesslog import Entry
    from llmproxy.web.request import ProxyRequest

__all__ = ["Tracer"]


class Tracer(Protocol):
    """Follows requests."""

    def held(self, request: ProxyRequest, backend: str) -> None:
        """It waits for that backend."""

    def handed(self, request: ProxyRequest) -> Fields:
        """It is about to be sent: its header fields, with the span that the backend's work is a part of."""

    def over(self, request: ProxyRequest, entry: Entry) -> None:
        """It is over, and this is all that is known of it; the trace's name is put in."""
