"""What the resources of the tree have in common."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from llmproxy.errors import Refusal

if TYPE_CHECKING:
    from llmproxy.web.request import ProxyRequest

__all__ = ["ProxyResource", "answer_json", "require_admin"]


def require_admin(request: ProxyRequest) -> None:
    """Let only administrators on.

    :raises llmproxy.errors.Refusal: ``invalid_api_key``, ``not_allowed``.
    """
    authenticator = request.site.authenticator
    request.key = authenticator.authenticate(request.fields, request.arrived, request.channel.client)
    authenticator.require_admin(request.key)


class ProxyResource(Resource):
    """A resource that answers every method by :meth:`serve`, and renders refusals."""

    isLeaf = True

    def render(self, request: Request) -> int:
        """See :class:`twisted.web.resource.IResource`."""
        proxied = cast("ProxyRequest", request)
        try:
            self.serve(proxied)
        except Refusal as refusal:
            proxied.refuse(refusal)
        return NOT_DONE_YET

    def serve(self, request: ProxyRequest) -> None:
        """Answer the request, now or later.

        :raises llmproxy.errors.Refusal: it is not served.
        """
        raise NotImplementedError


def answer_json(request: ProxyRequest, status: int, value: object) -> None:
    """Answer with a JSON document."""
    request.answer(status, json.dumps(value).encode() + b"\n", [(b"Content-Type", b"application/json")])
