"""An exchange whose answer gets the name by which the client asked for the model (``rewrite_model``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmproxy.http.headers import Fields, is_event_stream, is_json
from llmproxy.http.renaming import EventRenamer, renamed
from llmproxy.relay.upstream import Broken, ResponseHead
from llmproxy.web.exchange import Exchange

if TYPE_CHECKING:
    from llmproxy.backend.backend import Backend
    from llmproxy.fleet.fleet import Fleet
    from llmproxy.web.hints import Hints
    from llmproxy.web.request import ProxyRequest

__all__ = ["LARGEST_DOCUMENT", "RenamingExchange"]

LARGEST_DOCUMENT = 8 * 1024 * 1024
"""Bytes of a JSON answer that are kept until it is complete, as its length changes with the name; a larger
one is passed on as it is.  A chat completion has some thousand, a batch of 1,000 embeddings may have more."""


class RenamingExchange(Exchange):
    """Relays an answer in which the engine's own name of the model is replaced.

    :param served: the name that the engine writes.
    :param asked: the name by which the client asked.
    """

    def __init__(
        self,
        request: ProxyRequest,
        fleet: Fleet,
        backend: Backend,
        target: bytes,
        body: bytes,
        hints: Hints,
        served: str,
        asked: str,
    ) -> None:
        super().__init__(request, fleet, backend, target, body, hints)
        self._names = served, asked
        self._events: EventRenamer | None = None
        self._kept: tuple[ResponseHead, list[bytes]] | None = None
        self._size = 0

    def response_head(self, head: ResponseHead) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        self._events, self._kept, self._size = None, None, 0
        if not _may_be_changed(head):
            super().response_head(head)
        elif is_event_stream(head.fields):
            self._events = EventRenamer(*self._names)
            super().response_head(_framed_anew(head, None))
        elif is_json(head.fields) and (head.length or 0) <= LARGEST_DOCUMENT and not self._down.started:
            self._kept = head, []
        else:
            super().response_head(head)

    def response_data(self, pieces: list[bytes]) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        if self._events is not None:
            pieces = self._events.feed(pieces)
            if pieces:
                super().response_data(pieces)
            return
        if self._kept is not None:
            self._kept[1].extend(pieces)
            self._size += sum(map(len, pieces))
            if self._size > LARGEST_DOCUMENT:
                self._let_go(change=False)
            return
        super().response_data(pieces)

    def response_end(self) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        if not self._done:
            self._let_go(change=True)
            self._last_line()
        super().response_end()

    def response_broken(self, broken: Broken) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        # A part of a document is of use to nobody, and its client can still be told by a status.
        self._kept = None
        if not self._done:
            self._last_line()
        super().response_broken(broken)

    def _last_line(self) -> None:
        rest = [] if self._events is None else self._events.end()
        if rest:
            super().response_data(rest)

    def _let_go(self, *, change: bool) -> None:
        """Send what was kept."""
        if self._kept is None:
            return
        (head, pieces), self._kept = self._kept, None
        document = b"".join(pieces)
        found = renamed(document, *self._names) if change else None
        if found is not None:
            head = _framed_anew(head, len(found))
            document = found
        super().response_head(head)
        if document:
            super().response_data([document])


def _may_be_changed(head: ResponseHead) -> bool:
    """RFC 9110 section 7.7: not what its sender forbids to transform; and not what we cannot read."""
    control = b",".join(head.fields.all(b"cache-control")).lower()
    return (
        200 <= head.status < 300
        and b"content-encoding" not in head.fields
        and b"content-range" not in head.fields
        and b"no-transform" not in control
    )


def _framed_anew(head: ResponseHead, length: int | None) -> ResponseHead:
    """The head of a body of another length; None: one that is not known yet."""
    if length is None:
        fields = Fields([field for field in head.fields.raw if field[0].lower() != b"content-length"])
    else:
        fields = head.fields.changed({b"content-length": b"%d" % length})
    return head._replace(fields=fields, length=None if head.length is None else length)
