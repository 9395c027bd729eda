"""Which requests there are at this moment, and what they have had so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmproxy.usage.records import Open
from llmproxy.web.accesslog import Entry

if TYPE_CHECKING:
    from llmproxy.web.request import ProxyRequest
    from llmproxy.web.site import ProxySite

__all__ = ["open_requests", "open_sums", "tokens_so_far"]


def open_requests(site: ProxySite) -> Iterator[tuple[ProxyRequest, Entry]]:
    """Those that are about a backend and not over, in no order.

    They are looked for only when somebody asks: to keep a list of them would cost every request something.
    """
    for channel in site.channels:
        for request in channel.open_requests():
            entry = request.entry
            if entry is not None and entry.route != "-":
                yield request, entry


def open_sums(site: ProxySite) -> list[Open]:
    """The same, as the books want them; the oldest first."""
    now = site.clock.seconds()
    found = [
        Open(entry.route, request.key.name, now - request.arrived) for request, entry in open_requests(site)
    ]
    return sorted(found, key=lambda one: -one.age)


def tokens_so_far(site: ProxySite) -> dict[str, int]:
    """Events of streams that are open, by backend: engines send one for each token."""
    found: defaultdict[str, int] = defaultdict(int)
    for _, entry in open_requests(site):
        if entry.meter is not None:
            found[entry.route] += entry.meter.events
    return found
