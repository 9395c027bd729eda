"""From a client's bytes to its requests: framing by llhttp.

The framing is that of the parser in uvicorn, and so in vLLM: a request that the two would take for different
ones has no way through.  A head that differs from the connection's last one by nothing but the length of the
body is not parsed again (:mod:`llmproxy.http.known`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import httptools
from twisted.python.failure import Failure

from llmproxy.errors import Refusal, body_too_large, invalid_request
from llmproxy.http.headers import NO_FIELDS, Fields
from llmproxy.http.known import KnownHead
from llmproxy.http.targets import check_host, checked_target, target_too_long
from llmproxy.web.body import Full
from llmproxy.web.request import ProxyRequest
from llmproxy.web.unread import head_size, head_too_large, no_room

if TYPE_CHECKING:
    from llmproxy.web.channel import ProxyChannel

__all__ = ["RequestReader"]

_LINE_ENDS = (b"\r", b"\n")
"""May stand before a request (RFC 9112 section 2.2)."""


class RequestReader:
    """Reads the requests of one connection.

    :param channel: whose connection it is.
    :ivar requests: those that have come as a whole, in order; whoever answers takes them out.
    :ivar coming: the one whose body is coming.
    :ivar refusal: why what follows the requests cannot be read.
    :ivar deaf: the last request has come: nothing behind it is served (RFC 9112 section 9.6).
    :ivar waits: the client waits for ``100 Continue`` before it sends the body.
    :ivar target: what the last request whose head was parsed asks for, as far as that has come.
    :ivar left: bytes behind a request to switch protocols, for whoever answers that.
    :ivar began: when the head that is coming began, or the body behind it (the site's ``now``).
    """

    def __init__(self, channel: ProxyChannel) -> None:
        self._channel = channel
        self._site = channel.site
        self.requests: deque[ProxyRequest] = deque()
        self.coming: ProxyRequest | None = None
        self.refusal: Refusal | None = None
        self.deaf = False
        self.waits = False
        self.left = b""
        self.began = 0.0
        self._parser: Any = httptools.HttpRequestParser(self)
        # The head that is coming.
        self.target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._length: int | None = None
        self._fields = NO_FIELDS
        # Of the last head: its target and Host, and what they come to.
        self._asked: tuple[bytes, bytes | None, bytes] | None = None
        # The parser has seen nothing of the next request; what it has read before is known.
        self._between = True
        self._known: tuple[KnownHead, bytes, bytes] | None = None
        # Bytes that told nothing of a body, since the head before or the last byte of body; and of one piece.
        self._fed = 0
        self._piece = 0
        self._last = False
        self._framing: bytes | None = None
        self._resuming = False

    def feed(self, data: bytes) -> None:
        """The next bytes; what they come to is in the attributes.  None are kept but of a head."""
        if self.deaf or self.refusal is not None:
            return
        if not self._between:
            self._parse(data)
        elif self._known is None or not self._recognise(*self._known, data):
            known = len(self.requests)
            self._parse(data)
            if len(self.requests) == known + 1:
                self._learn(self.requests[-1], data)

    @property
    def reading(self) -> bool:
        """A request has begun to come, and has not come as a whole."""
        return not self._between and self.refusal is None

    def stop(self) -> None:
        """Nothing that still comes means anything."""
        self.deaf, self.refusal = True, None
        while self.requests:
            self.requests.pop().body.close()

    def drop(self) -> None:
        """Forget the request that is coming."""
        if self.coming is not None:
            self.coming.body.close()
            self.coming = None

    def close(self) -> list[ProxyRequest]:
        """The connection is gone.

        :return: the requests that have not been answered.
        """
        requests = list(self.requests)
        self.requests.clear()
        if self.coming is not None:
            requests.append(self.coming)
            self.coming = None
        # It refers to this object, and would leave both to the collector of cycles.
        self._parser = None
        return requests

    # -- what is known already ----------------------------------------------------------------------

    def _recognise(self, head: KnownHead, method: bytes, target: bytes, data: bytes) -> bool:
        """Take a whole request whose head is known, and nothing behind it, without the parser."""
        found = head.match(data)
        if (
            found is None
            or len(data) != found.size + found.length
            or found.length > self._site.limits.max_body
        ):
            return False
        request = ProxyRequest(self._channel)
        request.begin(method, target, "1.1", found.fields, found.length)
        if found.length and not self._keep(request, data[found.size :]):
            return True
        self.requests.append(request)
        return True

    def _learn(self, request: ProxyRequest, data: bytes) -> None:
        """Know a request again that came as a whole, in one piece with nothing around it."""
        end = data.find(b"\r\n\r\n") + 4
        plain = (
            self._between and not self._last and not request.upgrades and not data.startswith((b"\r", b"\n"))
        )
        # Of one that a client waits with, the body would have come later.
        if plain and end + request.body.size == len(data) and b"expect" not in request.fields:
            head = KnownHead.learn(data[:end], request.fields)
            self._known = None if head is None else (head, request.method, request.uri)

    # -- llhttp and its callbacks -------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        self._piece = len(data)
        self._fed += self._piece
        rest = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            # What a callback raises is not looked for in ``error``: which exception that names depends on
            # what is being handled around this call.
            if self.refusal is None and not self.deaf:
                if isinstance(error, httptools.HttpParserCallbackError):
                    raise
                self.refusal = invalid_request(f"The request is not valid HTTP/1.1: {error}.")
        else:
            # What is not body is held in the parser: no head, trailer or chunk's extension grows for ever.
            if self._fed > self._site.limits.max_head:
                self.refusal = head_too_large(self._site.limits)
        if rest is not None:
            self._upgrade_asked(rest)

    def _upgrade_asked(self, rest: bytes) -> None:
        if self._framing is not None:
            # llhttp takes it that a body does not follow a request to switch; such requests with a body are
            # Java's HttpClient asking for HTTP/2, and are served as they are.  So it is fed that body as one
            # of a request that asks for nothing.
            head, self._framing = b"POST / HTTP/1.1\r\n%b\r\n\r\n" % self._framing, None
            self._resuming = True
            self._parser = httptools.HttpRequestParser(self)
            self._parse(head + rest)
        else:
            # For whoever answers the request, or a request if it does not switch.
            self.left = rest

    def on_message_begin(self) -> None:
        """A request begins."""
        if self.deaf:
            # llhttp itself knows of ``Connection: close`` only, and not of HTTP/1.0 or CONNECT.
            raise _Deaf
        self._between = False
        self.began = self._site.now
        self.target = b""
        self._headers = []
        self._length = None

    def on_url(self, target: bytes) -> None:
        """A piece of the request target."""
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head or of the trailer."""
        if self.coming is not None:
            # The trailer, which a recipient may drop (RFC 9110 section 6.5.1).
            return
        if len(name) == 14 and name.lower() == b"content-length":
            # llhttp has refused a second one, what is no number, and one beside a Transfer-Encoding.
            self._length = int(value)
        else:
            # White space before a value is not given; that behind it is none of it (RFC 9112 section 5).
            self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head has come."""
        if self._resuming:
            self._resuming = False
            return
        try:
            self._begin()
        except Refusal as refusal:
            self.refusal = refusal
            raise

    def _begin(self) -> None:
        parser, limits = self._parser, self._site.limits
        if len(self._headers) > limits.max_fields or (
            # Several requests may have come in one piece.
            max(self._fed, self._piece) > limits.max_head
            and head_size(self.target, self._headers) > limits.max_head
        ):
            raise head_too_large(limits)
        if len(self.target) > limits.max_target:
            raise target_too_long(limits.max_target)
        # A client sends the same fields with request after request.
        fields = self._fields
        if self._headers != fields.raw:
            fields = Fields(self._headers)
            if len(fields) != len(fields.raw):
                check_host(None, len(fields.all(b"host")))
            self._fields = fields
        asked, host = self._asked, fields.get(b"host")
        if asked is None or asked[0] != self.target or asked[1] != host:
            check_host(host)
            asked = self._asked = (self.target, host, checked_target(self.target, host))
        request = ProxyRequest(self._channel)
        version = parser.get_http_version()
        request.begin(parser.get_method(), asked[2], version, fields, self._length)
        if request.length is not None and request.length > limits.max_body:
            raise body_too_large(limits.max_body)
        request.upgrades = parser.should_upgrade()
        if request.upgrades:
            self._framing = request.framing()
        self._last = not request.modern or not parser.should_keep_alive() or request.method == b"CONNECT"
        self.waits = request.modern and request.fields.get(b"expect", b"").lower() == b"100-continue"
        self._fed = 0
        self.began = self._site.now
        self.coming = request

    def on_body(self, data: bytes) -> None:
        """Bytes of the body."""
        assert self.coming is not None, "a body comes after a head"
        self.waits = False
        self._fed = 0
        if not self._keep(self.coming, data):
            assert self.refusal is not None
            raise self.refusal

    def _keep(self, request: ProxyRequest, data: bytes) -> bool:
        """Put bytes to a request's body; False when there is no room for them."""
        try:
            request.body.write(data)
        except OSError as cause:
            self._site.log_failure("keeping the body of a request", Failure(cause))
            self.refusal = no_room()
        except Full as bound:
            self.refusal = no_room(str(bound))
        else:
            if request.body.size > self._site.limits.max_body:
                self.refusal = body_too_large(self._site.limits.max_body)
        return self.refusal is None

    def on_message_complete(self) -> None:
        """The request has come as a whole."""
        if self._framing is not None:
            return
        request, self.coming = self.coming, None
        assert request is not None, "an end comes after a head"
        self.waits = False
        self.deaf = self._last
        self._fed = 0
        self._between = True
        self.requests.append(request)


class _Deaf(Exception):
    """A request begins behind the last one."""
