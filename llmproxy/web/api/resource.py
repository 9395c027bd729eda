"""The resource at ``/api``; :mod:`llmproxy.web.api.operations` says which path does what."""

from __future__ import annotations

from llmproxy.fleet.fleet import Fleet
from llmproxy.web.api.answers import Ask, need, no_body, not_found, only
from llmproxy.web.api.operations import OPERATIONS
from llmproxy.web.api.until import Waiting
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import ProxyResource, require_admin

__all__ = ["ApiResource"]


class ApiResource(ProxyResource):
    """The admin API; every path needs an administrator's key."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet
        self._waiting = Waiting(fleet)

    def serve(self, request: ProxyRequest) -> None:
        """See :class:`~llmproxy.web.resource.ProxyResource`."""
        require_admin(request)
        path = [segment.decode("utf-8", "replace") for segment in request.postpath or ()]
        if path[-1:] == [""]:
            path.pop()
        found = {one.method: (one, name) for one in OPERATIONS if (name := one.match(path)) is not None}
        if not found:
            raise not_found("There is no such path under /api.", "GET /api/openapi.json describes all paths.")
        operation, name = found[need(request, list(found))]
        only(request, operation.query)
        if not operation.body:
            no_body(request, operation.query)
        operation.answer(Ask(request, self._fleet, self._waiting, name))
