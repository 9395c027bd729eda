"""What is learned of a backend from its own list of models, when a client asks it for that."""

from __future__ import annotations

import json
from typing import Any

from llmproxy.relay.upstream import ResponseHead
from llmproxy.web.exchange import Exchange

__all__ = ["LISTING", "ListingExchange", "context_length"]

LISTING = "/v1/models"
"""Where a backend lists its models."""

LARGEST_LIST = 256 * 1024
"""Bytes of such an answer that are looked at."""


class ListingExchange(Exchange):
    """Relays ``/v1/models`` and keeps what it says of the longest context."""

    _list: list[bytes] | None = None
    _size = 0

    def response_head(self, head: ResponseHead) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        if head.status == 200 and b"content-encoding" not in head.fields:
            self._list = []
        super().response_head(head)

    def response_data(self, pieces: list[bytes]) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        self._size += sum(map(len, pieces))
        if self._list is not None and self._size <= LARGEST_LIST:
            self._list.extend(pieces)
        else:
            self._list = None
        super().response_data(pieces)

    def response_end(self) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        super().response_end()
        if self._list is not None:
            found = context_length(b"".join(self._list), self.backend.models)
            identity = self.backend.identity
            identity.context_length = found or identity.context_length


def context_length(answer: bytes, models: tuple[str, ...]) -> int | None:
    """``max_model_len`` in a list of models as vLLM makes it: that of the first of these that has one,
    else of the first in the list."""
    try:
        listed: Any = json.loads(answer)["data"]
        lengths = {one["id"]: one["max_model_len"] for one in listed if _is_length(one.get("max_model_len"))}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    for name in (*models, *lengths):
        if name in lengths:
            return int(lengths[name])
    return None


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53
