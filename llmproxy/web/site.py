"""The front: Twisted Web's site, channel and request, taught what a proxy needs.

Twisted Web parses requests, keeps the order of pipelined ones and walks the resource tree.  What is added:
the header fields as the client wrote them, a bound on bodies before they are read, errors in OpenAI's shape
also for heads that cannot be parsed, a request id, and one line in the access log for each request.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from llmproxy import __version__
from llmproxy.config.model import Key, Limits
from llmproxy.errors import Refusal, body_too_large, invalid_request
from llmproxy.http.headers import valid_request_id
from llmproxy.http.openai import error_body, error_headers
from llmproxy.relay.immediate import unsent
from llmproxy.web.accesslog import AccessLog, Entry
from llmproxy.web.auth import NOBODY, Authenticator

__all__ = ["ProxyChannel", "ProxyRequest", "ProxySite"]

IN_MEMORY = 1024 * 1024
"""Bytes of a request body that are kept in memory; larger bodies wait in a temporary file, since a thousand
requests may be held at once."""

SLOW_FOLLOWER = 1024 * 1024
"""Bytes that may wait for a client that follows logs or events."""

LINGER = 2.0
"""Seconds for which a refused connection is still read, so that the client sees the answer rather than a
reset of its upload (RFC 9112 section 9.6)."""


class ProxyRequest(Request):
    """A request with what the proxy needs beside Twisted's own fields.

    :ivar raw_headers: its header fields, names in the client's case and order.
    :ivar request_id: the client's own ``X-Request-ID``, or a new one.
    :ivar key: whoever asks; set once it is known.
    :ivar length: bytes of its body; ``None`` when it has none.
    :ivar when_gone: called when the client leaves before the answer is complete.
    """

    site: ProxySite
    channel: Any
    content: Any
    args: Any
    defaultContentType = b"application/json"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.request_id = b""
        self.key: Key = NOBODY
        self.length: int | None = None
        self.entry: Entry | None = None
        self.arrived = 0.0
        self.when_gone: Callable[[], None] | None = None
        self._received = 0

    # -- receiving ----------------------------------------------------------------------------------

    def gotLength(self, length: int | None) -> None:
        """Choose where the body is kept; see :data:`IN_MEMORY`."""
        self.length = length
        self.content = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body, up to ``max_body``."""
        self._received += len(data)
        limit = self.channel.site.limits.max_body
        if self._received > limit:
            self.channel.refuse(body_too_large(limit))
        else:
            self.content.write(data)

    def process(self) -> None:
        """Find the resource and render it, once the fleet knows what runs."""
        self.site = self.channel.site
        self._prepare()
        if self.site.ready is not None:
            self.site.ready.addCallback(lambda _: self._dispatch())
        else:
            self._dispatch()

    def _prepare(self) -> None:
        site = self.site
        self.arrived = site.clock.seconds()
        if self.length is None and self.requestHeaders.hasHeader(b"transfer-encoding"):
            self.length = self._received
        elif self.length == 0 and not self.requestHeaders.hasHeader(b"content-length"):
            self.length = None
        asked = self.requestHeaders.getRawHeaders(b"x-request-id", [b""])[0]
        self.request_id = asked if valid_request_id(asked) else uuid.uuid4().hex.encode("ascii")
        if not self.uri.startswith(b"/") and b"://" in self.uri:
            # Absolute form (RFC 9112 section 3.2.2): the authority is ours whatever it says.
            rest = self.uri.split(b"://", 1)[1]
            self.uri = b"/" + rest.partition(b"/")[2]
            self.path = self.uri.partition(b"?")[0]
        self.entry = Entry(
            request_id=self.request_id.decode("ascii"),
            client=str(getattr(self.getClientAddress(), "host", "-")),
            method=self.method.decode("latin-1"),
            path=self.path.decode("latin-1"),
            received=self._received,
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
            if b"#" in self.uri:
                # RFC 9112 section 3.2 has no fragment there; servers that cut it off (uvicorn) would see
                # another path than the one that is guarded here.
                raise invalid_request("The request target must have no fragment.")
            if self.method == b"CONNECT":
                raise invalid_request("CONNECT is not served here.")
            super().process()
        except Refusal as refusal:
            self.refuse(refusal)

    def processingFailed(self, reason: Failure) -> Failure:
        """Answer what a resource raised: a refusal as such, anything else as 500 without its text."""
        if isinstance(reason.value, Refusal):
            self.refuse(reason.value)
        else:
            self.site.log_failure("answering a request", reason)
            failed = Refusal(500, "error", "llmproxy failed on this request; its log says why.")
            self.refuse(failed, outcome="error")
        return reason

    # -- answering ----------------------------------------------------------------------------------

    @property
    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """What is on every answer."""
        return [(b"X-Request-ID", self.request_id)]

    def refuse(self, refusal: Refusal, *, outcome: str = "refused", held: float = 0.0) -> None:
        """Answer with an error.

        :param outcome: what the access log says of it.
        :param held: seconds that the request was held.
        """
        if self._disconnected or self.finished or self.startedWriting:
            return
        if self.entry is not None:
            self.entry.outcome = outcome
        backend = refusal.backend or "-"
        self.answer(refusal.status, error_body(refusal), error_headers(refusal), backend=backend, held=held)

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
        self.setResponseCode(status)
        for name, value in (*headers, *self.own_headers):
            self.responseHeaders.setRawHeaders(name, [value])
        self.responseHeaders.setRawHeaders(b"X-LLMProxy-Backend", [backend.encode("utf-8")])
        self.responseHeaders.setRawHeaders(b"X-LLMProxy-Cold-Start", [b"%.3f" % held])
        self.responseHeaders.setRawHeaders(b"Server", [b"llmproxy/" + __version__.encode("ascii")])
        if status != 204:
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        if self.site.closing:
            self.channel.persistent = False
            self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        if self.entry is not None:
            self.entry.sent = len(body)
        if self.method != b"HEAD":
            self.write(body)
        else:
            self.write(b"")
        self.finish()

    def stream_text(self, kind: bytes) -> None:
        """Begin an answer whose end is not known yet.

        :param kind: its ``Content-Type``.
        """
        for name, value in self.own_headers:
            self.responseHeaders.setRawHeaders(name, [value])
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
        """Such an answer is complete."""
        self.site.streams.discard(self)
        if not self._disconnected and not self.finished:
            self.finish()

    # -- the end ------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The answer is complete."""
        super().finish()
        self._write_log()

    def connectionLost(self, reason: Failure) -> None:
        """The client has left, or the connection was ended before the answer was complete."""
        super().connectionLost(reason)
        if self.entry is not None:
            self.site.streams.discard(self)
        if self.when_gone is not None:
            self.when_gone()
        elif self.entry is not None and not self.finished:
            self.entry.outcome = "client_gone"
        self._write_log()

    def _write_log(self) -> None:
        entry, self.entry = self.entry, None
        if entry is not None:
            entry.status = self.code if self.startedWriting else 0
            entry.seconds = self.site.clock.seconds() - self.arrived
            entry.key = self.key.name
            self.site.access_log.write(entry)


class ProxyChannel(HTTPChannel):
    """A connection of a client."""

    site: ProxySite
    _lingering: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Count it; past ``max_connections`` it is closed at once."""
        self.site.channels.add(self)
        super().connectionMade()
        if len(self.site.channels) > self.site.limits.max_connections:
            cast(Any, self.transport).abortConnection()

    def headerReceived(self, line: bytes) -> bool:
        """Note a header field as it was written, beside Twisted's own record of it."""
        received: bool = super().headerReceived(line)
        if received:
            name, _, value = line.partition(b":")
            self.requests[-1].raw_headers.append((name, value.strip(b" \t")))
        return received

    def allHeadersReceived(self) -> None:
        """Refuse a body that is announced as too large before the client is told to go on."""
        limit = self.site.limits.max_body
        if self.length is not None and self.length > limit:
            self.refuse(body_too_large(limit))
            return
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """Process the request, unless it was refused while its body came."""
        if self._lingering is None:
            super().allContentReceived()

    def lineLengthExceeded(self, line: bytes) -> None:
        """A request line or header field is longer than Twisted reads (16 KiB)."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(invalid_request("The request is not valid HTTP/1.1."))

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error outside of any resource, once, and end the connection."""
        if self._lingering is not None:
            return
        body = error_body(refusal)
        fields = [
            *error_headers(refusal),
            (b"Content-Length", b"%d" % len(body)),
            (b"X-Request-ID", uuid.uuid4().hex.encode("ascii")),
            (b"X-LLMProxy-Backend", b"-"),
            (b"X-LLMProxy-Cold-Start", b"0.000"),
            (b"Connection", b"close"),
        ]
        reason = {413: b"Content Too Large"}.get(refusal.status, b"Bad Request")
        lines = [b"HTTP/1.1 %d %s" % (refusal.status, reason), *(n + b": " + v for n, v in fields), b"\r\n"]
        transport: Any = self.transport
        transport.write(b"\r\n".join(lines) + body)
        client = str(getattr(self.getPeer(), "host", "-"))
        unread = Entry("-", client, "-", "-", status=refusal.status, outcome="refused", sent=len(body))
        self.site.access_log.write(unread)
        # Nothing that still comes means anything.
        self._receive_by(lambda *_: None)
        self.setTimeout(None)
        if self.isSecure() or not hasattr(transport, "loseWriteConnection"):
            # TLS has no half-close: what a TLS transport offers is that of the socket below the session.
            self.loseConnection()
        else:
            transport.loseWriteConnection()
        self._lingering = self.callLater(LINGER, transport.abortConnection)

    def become_tunnel(self, receive: Any) -> None:
        """Hand the client's bytes to ``receive`` from now on: the connection has switched protocols."""
        early, self._dataBuffer = b"".join(self._dataBuffer), []
        self._receive_by(receive)
        if early:
            receive(early)
            if not self._waitingForTransport:
                # Twisted stops to read while much has come before the answer to a request.
                self._networkProducer.resumeProducing()

    def _receive_by(self, receive: Callable[..., None]) -> None:
        # Twisted's own WebSocket support switches a channel over in the same way.
        for name in ("dataReceived", "lineReceived", "rawDataReceived"):
            setattr(self, name, receive)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget it."""
        self.site.channels.discard(self)
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        super().connectionLost(reason)

    def unsent(self) -> int:
        """Bytes of answers that its client has not taken yet."""
        return unsent(self.transport)

    def close_if_idle(self) -> None:
        """End the connection when no request is being read or answered on it."""
        self.persistent = False
        if not self.requests:
            self.loseConnection()


class ProxySite(Site):
    """What all connections share.

    :param clock: time.
    :ivar held: requests that wait for a backend, over all of them.
    :ivar streams: answers that go on until the client leaves (events, logs).
    :ivar ready: fires when the fleet knows what runs; None afterwards.
    :ivar closing: no connection is kept any more.
    """

    noisy = False

    def __init__(
        self,
        resource: IResource,
        clock: Any,
        authenticator: Authenticator,
        limits: Limits,
        access_log: AccessLog,
    ) -> None:
        super().__init__(resource, ProxyRequest, reactor=clock, parsePOSTFormSubmission=False)
        self.clock = clock
        self.authenticator = authenticator
        self.limits = limits
        self.access_log = access_log
        self.channels: set[ProxyChannel] = set()
        self.held = 0
        self.streams: set[ProxyRequest] = set()
        self.ready: Deferred[None] | None = None
        self.closing = False
        # Instead of the channel that Twisted chooses by what ALPN negotiated; see acceptableProtocols.
        vars(self)["protocol"] = ProxyChannel

    def startFactory(self) -> None:
        """Twisted's own access log, and the timer for its dates, stay off."""

    def stopFactory(self) -> None:
        """See :meth:`startFactory`."""

    def log(self, request: object) -> None:
        """See :class:`~llmproxy.web.accesslog.AccessLog`."""

    def log_failure(self, what: str, reason: Failure) -> None:
        """Log a fault of the proxy's own."""
        self.access_log.failure(what, reason)

    def acceptableProtocols(self) -> list[bytes]:
        """What is offered by ALPN on TLS endpoints."""
        return [b"http/1.1"]

    def fleet_started(self) -> None:
        """Dispatch what came while the fleet looked at what runs."""
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.callback(None)

    def close_idle(self) -> None:
        """Keep no connection beyond its present request."""
        self.closing = True
        for request in list(self.streams):
            request.end_stream()
        for channel in list(self.channels):
            channel.close_if_idle()
