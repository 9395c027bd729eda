"""A request that came by a stream of HTTP/2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from llmproxy.errors import Refusal
from llmproxy.http.headers import Fields
from llmproxy.web.h2.downstream import StreamDownstream
from llmproxy.web.request import ProxyRequest

if TYPE_CHECKING:
    from llmproxy.web.channel import ProxyChannel

__all__ = ["StreamRequest"]


class StreamRequest(ProxyRequest):
    """As one by HTTP/1.1, but for how its answer ends.

    :param stream: it is its channel.
    """

    downstream = StreamDownstream

    def __init__(self, stream: Any) -> None:
        super().__init__(cast("ProxyChannel", stream))
        # Not the stream: with the request's end nothing refers to it any more.
        self.transport = stream.connection.transport
        # Nothing of an answer is chunked.
        self.modern = False
        self.clientproto = b"HTTP/2"

    def take(self, method: bytes, target: bytes, fields: Fields, length: int | None) -> None:
        """Its head has come, and has been checked."""
        self.method, self.uri, self.fields, self.length = method, target, fields, length

    def reject(self, refusal: Refusal) -> None:
        """Answer with an error outside of any resource."""
        self._prepare()
        self.refuse(refusal)
