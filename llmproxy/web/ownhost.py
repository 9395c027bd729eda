"""What a page could do without knowing a key is done only under names that no stranger can own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmproxy.web.request import ProxyRequest

__all__ = ["require_own_host"]


def require_own_host(request: ProxyRequest, *, keyed: bool) -> None:
    """Refuse a request by a name that may have been made to lead here (:mod:`llmproxy.http.hosts`).

    :param keyed: keys are configured.  Then a request that brings one is no such page's, for that knows none;
        without, whatever it brings proves nothing.
    :raises llmproxy.errors.Refusal: ``not_allowed``.
    """
    fields = request.fields
    if keyed and (b"authorization" in fields or b"x-api-key" in fields):
        return
    told = request.channel.origin.host
    request.site.hosts.require(fields.get(b"host") if told is None else told)
