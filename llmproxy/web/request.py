"""One request of a client: Twisted Web's, with what a proxy needs beside it."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import parse_qs
from twisted.web.http_headers import Headers
from twisted.web.resource import getChildForRequest
from twisted.web.server import Request

from llmproxy import __version__
from llmproxy.config.model import Key
from llmproxy.errors import Refusal, invalid_request
from llmproxy.http.dialects import dialect_of, error_body
from llmproxy.http.headers import NO_FIELDS, Fields, valid_request_id
from llmproxy.http.multipart import form_streams, is_form
from llmproxy.http.openai import error_headers, wants_stream
from llmproxy.reactors.writing import unsent
from llmproxy.relay.downstream import Downstream
from llmproxy.web.accesslog import Entry
from llmproxy.web.auth import NOBODY
from llmproxy.web.body import IN_MEMORY, Body
from llmproxy.web.hints import NO_HINTS, Hints

if TYPE_CHECKING:
    from llmproxy.web.channel import ProxyChannel
    from llmproxy.web.site import ProxySite

__all__ = ["ProxyRequest", "new_request_id"]

SLOW_FOLLOWER = 1024 * 1024
"""Bytes that may wait for a client that follows logs or events."""

_SERVER = b"llmproxy/" + __version__.encode("ascii")


_PROCESS = os.urandom(8).hex().encode("ascii")
_COUNT = itertools.count(1)


def new_request_id() -> bytes:
    """An id that no other request has, of this process or another."""
    return b"%b%08x" % (_PROCESS, next(_COUNT))


class ProxyRequest(Request):
    """A request that has begun to come.

    :ivar fields: its header fields, but for ``Content-Length``; not to be changed.
    :ivar body: what has come of its body.
    :ivar length: bytes of its body; ``None`` when it has none.
    :ivar modern: it is HTTP/1.1.
    :ivar upgrades: it asks for another protocol on this connection.
    :ivar request_id: the client's own ``X-Request-ID``, or a new one.
    :ivar arrived: when it had come as a whole (seconds of the site's clock).
    :ivar key: whoever asks; set once it is known.
    :ivar hints: what the client says of it to the proxy; read with the key.
    :ivar when_gone: called once when the client leaves before the answer is complete, and by ``end_stream``.
    :ivar extra: header fields that its answer gets beside those of every answer.
    :ivar downstream: writes an answer that is relayed.
    :ivar cors: it is the proxy that tells browsers who may read the answer, and not the backend.
    """

    site: ProxySite
    channel: Any
    args: Any
    prepath: list[bytes]
    postpath: list[bytes]
    finished: Any
    defaultContentType = b"application/json"
    cookies: Any = ()
    received_cookies: Any = MappingProxyType({})
    queued = False
    extra: tuple[tuple[bytes, bytes], ...] = ()
    cors = False
    hints: Hints = NO_HINTS
    downstream: type[Downstream] = Downstream
    _parsePOSTFormSubmission = False

    def __init__(self, channel: ProxyChannel) -> None:
        # Instead of Twisted Web's own, which makes header and other objects that a request to a backend has
        # no use for; those are made here when they are asked for.
        self.channel = channel
        self.transport = channel.transport
        self.client, self.host = channel.getPeer(), channel.getHost()
        self.notifications = []
        self.site = channel.site
        self.fields = NO_FIELDS
        self.body = Body(channel.site.room)
        self.length: int | None = None
        self.modern = True
        self.upgrades = False
        self.request_id = b""
        self.key: Key = NOBODY
        self.entry: Entry | None = None
        self.arrived = 0.0
        self.when_gone: Callable[[], None] | None = None

    # -- receiving ----------------------------------------------------------------------------------

    def begin(self, method: bytes, target: bytes, version: str, fields: Fields, length: int | None) -> None:
        """Its head has come.

        :param fields: all but ``Content-Length``.
        :param length: what that says; None when there is none.
        :raises llmproxy.errors.Refusal: ``invalid_request``: it is ambiguous, or of another version.
        """
        self.method, self.uri = method, target
        self.modern = version == "1.1"
        self.clientproto = b"HTTP/1.1" if self.modern else b"HTTP/1.0"
        self.fields = fields
        if self.modern:
            if b"host" not in fields:
                raise invalid_request("The request has no Host.")
        elif version != "1.0":
            raise invalid_request("The request is neither HTTP/1.1 nor HTTP/1.0.")
        self.length = length
        coding = fields.get(b"transfer-encoding")
        if coding is not None:
            # RFC 9112 section 6.1: none but chunked is decoded here, and HTTP/1.0 has none at all.
            if coding.strip(b" \t").lower() != b"chunked" or not self.modern:
                raise invalid_request("Transfer-Encoding must be chunked, in HTTP/1.1.")
            self.length = 0

    def framing(self) -> bytes | None:
        """The header field that says where its body ends; None when it has no body."""
        if self.fields.get(b"transfer-encoding") is not None:
            return b"Transfer-Encoding: chunked"
        return b"Content-Length: %d" % self.length if self.length else None

    # Twisted Web has these three as attributes that it sets for every request; here they are made when they
    # are asked for.

    @cached_property
    def requestHeaders(self) -> Headers:  # type: ignore[override]
        """The header fields as Twisted Web has them."""
        made = Headers()
        for name, value in self.fields.raw:
            made.addRawHeader(name, value)
        if self.length is not None:
            made.addRawHeader(b"Content-Length", b"%d" % self.length)
        return made

    @cached_property
    def responseHeaders(self) -> Headers:  # type: ignore[override]
        """The header fields of an answer that a resource writes."""
        return Headers()

    @cached_property
    def content(self) -> Any:  # type: ignore[override]
        """The body as a file, as Twisted Web has it."""
        return io.BytesIO(self.body.whole())

    def process(self) -> None:
        """Find the resource and render it, once the fleet knows what runs."""
        self._prepare()
        if self.site.ready is not None:
            self.site.ready.addCallback(lambda _: self._dispatch())
        else:
            self._dispatch()

    def _prepare(self) -> None:
        self.arrived = self.site.clock.seconds()
        if self.channel.trusted:
            self.channel.hear(self.fields)
        if self.length is not None:
            self.length = self.body.size
        asked = self.fields.get(b"x-request-id")
        # Ours count up, and nobody shall name a request as another one's will be.
        taken = asked and valid_request_id(asked) and not asked.startswith(_PROCESS)
        self.request_id = asked if asked and taken else new_request_id()
        self.path, _, query = self.uri.partition(b"?")
        self.args = parse_qs(query, True) if query else {}
        self.entry = Entry(
            request_id=self.request_id.decode("ascii"),
            client=self.channel.client,
            method=self.method.decode("latin-1"),
            path=self.path.decode("latin-1"),
            received=self.body.size,
        )

    def _dispatch(self) -> None:
        if self._disconnected:
            return
        try:
            if self.uri == b"*" and self.method == b"OPTIONS":
                # About the server as a whole (RFC 9112 section 3.2.4).
                self.answer(204, b"", [])
                return
            if not self.uri.startswith(b"/"):
                raise invalid_request("The request target must be a path.")
            if self.method == b"CONNECT":
                # It would be a way to anywhere.
                raise invalid_request("CONNECT is not served here.")
            if self.method == b"TRACE":
                # It has a server repeat what it was sent, and that is not all the client's own: the backend's
                # key is in it.
                self.setHeader(b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
                refusal = invalid_request("TRACE is not served here.")
                raise Refusal(405, refusal.code, refusal.message, kind=refusal.kind)
            self.prepath = []
            segments = self.path[1:].split(b"/")
            self.postpath = list(map(unquote_to_bytes, segments)) if b"%" in self.path else segments
            self.render(getChildForRequest(self.site.resource, self))
        except Refusal as refusal:
            self.refuse(refusal)
        except Exception:
            # A fault of our own is answered and logged; the other requests go on.
            self.processingFailed(Failure())

    def processingFailed(self, reason: Failure) -> Failure:
        """Answer what a resource raised: a refusal as such, anything else as 500 without its text."""
        if isinstance(reason.value, Refusal):
            self.refuse(reason.value)
        else:
            self.site.log_failure("answering a request", reason)
            failed = Refusal(500, "error", "llmproxy failed on this request; its log says why.")
            self.refuse(failed, outcome="error")
        return reason

    def asks_for_stream(self) -> bool:
        """Whether its body, as the backend gets it, asks for a stream of events."""
        body, kind = self.body.whole(), self.fields.get(b"content-type", b"").decode("latin-1")
        return form_streams(kind, body) if is_form(kind) else wants_stream(body)

    def affinity(self) -> bytes | None:
        """What it has in common with requests that are best served by the same task; None: nothing."""
        if not 0 < self.body.size <= IN_MEMORY:
            return None
        # Only backends of several tasks ask.
        from llmproxy.http.affinity import affinity_key

        return affinity_key(self.body.whole())

    # -- answering ----------------------------------------------------------------------------------

    @property
    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """What is on every answer."""
        return [(b"X-Request-ID", self.request_id), *self.extra]

    def refuse(self, refusal: Refusal, *, outcome: str = "refused", held: float = 0.0) -> None:
        """Answer with an error.

        :param outcome: what the access log says of it.
        :param held: seconds that the request was held.
        """
        if self._disconnected or self.finished or self.startedWriting:
            return
        if self.entry is not None:
            self.entry.outcome, self.entry.error = outcome, refusal.code
        backend = refusal.backend or "-"
        body = error_body(dialect_of(self.uri), refusal)
        self.answer(refusal.status, body, error_headers(refusal), backend=backend, held=held)

    def answer(
        self,
        status: int,
        body: bytes,
        headers: list[tuple[bytes, bytes]],
        *,
        backend: str = "-",
        held: float = 0.0,
    ) -> None:
        """Answer with a whole body.

        :param backend: the backend concerned.
        :param held: seconds that the request was held.
        """
        if self._disconnected or self.finished:
            return
        if self.site.closing:
            self.channel.persistent = False
        self._set_fields([*headers, *self.own_headers], backend, held)
        if status not in (204, 304):
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        self.setResponseCode(status)
        if self.entry is not None:
            self.entry.sent = len(body)
        self.write(b"" if self.method == b"HEAD" else body)
        self.finish()

    def _set_fields(self, headers: list[tuple[bytes, bytes]], backend: str, held: float) -> None:
        fields = self.responseHeaders
        for name, value in headers:
            fields.setRawHeaders(name, [value])
        fields.setRawHeaders(b"X-LLMProxy-Backend", [backend.encode("utf-8")])
        fields.setRawHeaders(b"X-LLMProxy-Cold-Start", [b"%.3f" % held])
        fields.setRawHeaders(b"Server", [_SERVER])

    def stream_text(self, kind: bytes, *, backend: str = "-") -> None:
        """Begin an answer whose end is not known yet.

        :param kind: its ``Content-Type``.
        :param backend: the backend concerned.
        """
        self._set_fields(self.own_headers, backend, 0.0)
        self.setHeader(b"Content-Type", kind)
        self.setHeader(b"Cache-Control", b"no-cache")
        self.setHeader(b"X-Accel-Buffering", b"no")
        self.site.streams.add(self)
        self.write(b"")

    def stream(self, data: bytes) -> None:
        """The next bytes of such an answer.  A client that does not read them is let go."""
        if self._disconnected or self.finished:
            return
        if unsent(self.channel.transport) > SLOW_FOLLOWER:
            self.channel.transport.abortConnection()
            return
        self.write(data)

    def end_stream(self) -> None:
        """Such an answer is complete; whoever makes it is told as if the client had left."""
        self.site.streams.discard(self)
        self._tell_gone()
        if not self._disconnected and not self.finished:
            self.finish()

    # -- the end ------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The answer is complete."""
        assert not self.finished, "an answer ends once"
        assert not self._disconnected, "nobody is there to be answered"
        if not self.startedWriting:
            self.write(b"")
        if self.chunked:
            self.channel.write(b"0\r\n\r\n")
        self.finished = 1
        self._write_log()
        self.body.close()
        channel, self.channel = self.channel, None
        channel.requestDone(self)
        if self.notifications:
            for waiting in self._noticed():
                waiting.callback(None)

    def connectionLost(self, reason: Failure) -> None:
        """The client has left, or the connection was ended before the answer was complete."""
        self._disconnected = True
        self.channel = None
        self.site.streams.discard(self)
        if self.entry is not None and (self.when_gone is None or not self.startedWriting):
            self.entry.outcome = "client_gone"
        self._tell_gone()
        self.body.close()
        self._write_log()
        for waiting in self._noticed():
            waiting.errback(reason)

    def _tell_gone(self) -> None:
        gone, self.when_gone = self.when_gone, None
        if gone is not None:
            gone()

    def _noticed(self) -> list[Deferred[None]]:
        """Who asked by ``notifyFinish``, each to be told once."""
        notifications, self.notifications = self.notifications, []
        return notifications

    def _write_log(self) -> None:
        entry, self.entry = self.entry, None
        if entry is not None:
            entry.status = self.code if self.startedWriting else 0
            entry.at = self.site.clock.seconds()
            entry.seconds = entry.at - self.arrived
            entry.key = self.key.name
            if self.site.tracer is not None:
                self.site.tracer.over(self, entry)
            self.site.access_log.write(entry)
