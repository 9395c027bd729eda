"""One HTTP/1.1 connection to a backend, of our own: framing by llhttp, bytes handed on as they come.

The framing of the answer is settled here and nowhere else.  What leaves towards the client is what was
parsed, so that bytes beyond the end of a message can never reach it, and a connection is used again only
after a message that was complete, kept alive by both sides, and followed by nothing.
"""

from __future__ import annotations

import re
from typing import IO, Any, NamedTuple, Protocol

import httptools
from attrs import frozen
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure

from llmproxy.http.headers import Fields
from llmproxy.http.known import KnownHead
from llmproxy.reactors.writing import unsent, write_soon

__all__ = ["UPSTREAM", "Broken", "ResponseHandler", "ResponseHead", "UpstreamConnection"]

SMALL_BODY = 64 * 1024
"""Bytes of a request body that are copied behind its head, to leave with it in one go."""

LARGEST_HEAD = 256 * 1024
"""Bytes of an answer's head, and of all else in it that is no body.  An engine's heads have some hundred."""

_NO_BODY = frozenset((204, 304))

_REASON = re.compile(rb"[\t -~\x80-\xff]*")
"""What may stand behind a status (RFC 9112 section 4); llhttp takes control characters, too."""


class ResponseHead(NamedTuple):
    """The head of an answer.

    :ivar length: bytes of the body when the backend said so.
    :ivar delimited: the end of the body can be told from the message itself; otherwise the end of the
        connection is its end.
    :ivar upgraded: the connection has switched protocols (status 101).
    """

    status: int
    reason: bytes
    fields: Fields
    length: int | None
    delimited: bool
    upgraded: bool = False


@frozen
class Broken:
    """The answer did not come to its end.

    :ivar untouched: not one byte of an answer had come, so that the request may be tried again on a new
        connection when this one had been used before.
    """

    reason: str
    untouched: bool


class ResponseHandler(Protocol):
    """Whoever sent a request hears its answer by these, in this order; at most one of the last two comes."""

    def response_head(self, head: ResponseHead) -> None:
        """The head has come."""

    def response_data(self, pieces: list[bytes]) -> None:
        """Bytes of the body, chunk framing removed; after an upgrade, bytes of the tunnel."""

    def response_end(self) -> None:
        """The message is complete (for a tunnel: the backend closed it)."""

    def response_broken(self, broken: Broken) -> None:
        """The connection or the framing broke before the end."""


class UpstreamConnection(TwistedProtocol):
    """A connection that carries one exchange at a time.

    :ivar used: it has carried an exchange before.
    :ivar on_idle: called with the connection when it may be used again.
    :ivar on_closed: called with the connection when it is gone.
    """

    # Twisted names an interface here that has none of what a connection of TCP or TLS can do.
    transport: Any

    def __init__(self) -> None:
        self.used = False
        self.closed = False
        self.on_idle: Any = None
        self.on_closed: Any = None
        self._handler: ResponseHandler | None = None
        self._parser: Any = None
        self._sender: FileSender | None = None
        self._large = False
        self._head_request = False
        self._tunnel = False
        self._known: tuple[KnownHead, ResponseHead] | None = None
        self._reset()

    def _reset(self) -> None:
        self._status_text = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head: ResponseHead | None = None
        self._told_head = False
        self._pieces: list[bytes] = []
        self._complete = False
        self._trailing = False
        self._any = False
        # Bytes since the last of the body: of heads, of interim answers, of a trailer.
        self._silent = 0
        self._reusable = False

    # -- sending ------------------------------------------------------------------------------------

    def send(
        self,
        head: bytes,
        body: bytes | IO[bytes],
        handler: ResponseHandler,
        *,
        head_request: bool = False,
    ) -> None:
        """Send one request and report its answer to ``handler``.

        :param head: the request's head, ready to be sent.
        :param body: the whole body, or the file that holds it, read from its beginning; ``b""``: none.
        :param head_request: it is a HEAD request, whose answer has no body.
        """
        assert self._handler is None, "one exchange at a time"
        self._reset()
        self._handler = handler
        self._head_request = head_request
        self._large = False
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        transport = self.transport
        assert transport is not None
        if isinstance(body, bytes):
            if len(body) <= SMALL_BODY:
                write_soon(transport, head + body)
            else:
                self._large = True
                transport.writeSequence((head, body))
            return
        body.seek(0)
        transport.write(head)
        self._sender = FileSender()
        sent = self._sender.beginFileTransfer(body, IConsumer(transport))
        # A transfer that ends early does so because the connection is gone, which is reported as such.
        sent.addCallbacks(self._sent, lambda _: None)

    def _sent(self, _: object) -> None:
        self._sender = None

    @property
    def complete(self) -> bool:
        """The answer has come as a whole."""
        return self._complete and not self._tunnel

    @property
    def bare(self) -> bool:
        """The head of the answer has come, and nothing of its body yet."""
        return not self._pieces and not self._complete

    def abort(self) -> None:
        """Give the connection up at once, whatever it is doing; its handler hears no more.

        Never a half-close: vLLM takes that for a disconnect and answers nothing.
        """
        self._handler = None
        self.closed = True
        if self.transport is not None:
            self.transport.abortConnection()

    def write_tunnel(self, data: bytes) -> None:
        """Send bytes of a switched protocol."""
        if self.transport is not None:
            write_soon(self.transport, data)

    # -- the connection -----------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        if self._handler is None:
            # Nobody asked: an idle connection that speaks is not one to be used again.
            self.abort()
            return
        if self._tunnel:
            self._handler.response_data([data])
            return
        first, self._any = not self._any, True
        if first and self._known is not None and self._recognise(*self._known, data):
            self._deliver("")
            return
        error = ""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # A switch in what follows a whole answer is no answer's, and what comes behind it is nobody's.
            if not self._trailing:
                self._tunnel = True
                rest = data[upgrade.args[0] :]
                if rest:
                    self._pieces.append(rest)
        except httptools.HttpParserError as cause:
            error = str(cause) or type(cause).__name__
        else:
            if self._pieces:
                self._silent = 0
            else:
                self._silent += len(data)
                if self._silent > LARGEST_HEAD:
                    error = "its head is too large"
        if first and self._complete and self._reusable and not error and not self._trailing:
            self._learn(data)
        self._deliver(error)

    def _recognise(self, head: KnownHead, like: ResponseHead, data: bytes) -> bool:
        """Take a whole answer whose head is known, and nothing behind it, without the parser."""
        found = None if self._head_request else head.match(data)
        if found is None or len(data) != found.size + found.length:
            return False
        self._head = ResponseHead(like.status, like.reason, found.fields, found.length, delimited=True)
        if found.length:
            self._pieces.append(data[found.size :])
        self._complete = self._reusable = True
        return True

    def _learn(self, data: bytes) -> None:
        """Know an answer again that came as a whole, in one piece with nothing around it."""
        head, end = self._head, data.find(b"\r\n\r\n") + 4
        assert head is not None, "it is complete"
        # Not of one behind an interim answer, whose length then stands in another head.
        if head.length is not None and head.status not in _NO_BODY and end + head.length == len(data):
            known = KnownHead.learn(data[:end], head.fields)
            self._known = None if known is None else (known, head)

    def _deliver(self, error: str) -> None:
        handler = self._handler
        assert handler is not None
        if self._head is not None and not self._told_head:
            self._told_head = True
            handler.response_head(self._head)
        if self._pieces and self._handler is handler:
            pieces, self._pieces = self._pieces, []
            handler.response_data(pieces)
        if self._handler is not handler:
            # It gave the connection up while it was told.
            return
        if self._complete and not self._tunnel:
            self._finish(reusable=self._reusable and not error and not self._trailing)
        elif error:
            self._break(f"its answer is not valid HTTP ({error})")

    def _finish(self, *, reusable: bool) -> None:
        handler, self._handler = self._handler, None
        if self._sender is not None or (self._large and unsent(self.transport)):
            # It answered before it had read the whole request: the rest would be taken for the next one.
            reusable = False
        if reusable:
            self.used = True
        else:
            self.closed = True
            if self.transport is not None:
                self.transport.abortConnection()
        if handler is not None:
            handler.response_end()
        if reusable and self.on_idle is not None:
            self.on_idle(self)

    def _break(self, reason: str) -> None:
        handler = self._handler
        untouched = not self._any
        self.abort()
        if handler is not None:
            handler.response_broken(Broken(reason, untouched))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        # It refers to this object, and would leave both to the collector of cycles.
        self._parser = None
        handler, self._handler = self._handler, None
        if self.on_closed is not None:
            self.on_closed(self)
        if handler is None:
            return
        clean = isinstance(reason.value, ConnectionDone)
        if self._tunnel or (self._head is not None and not self._head.delimited and clean):
            handler.response_end()
        else:
            what = "it closed the connection" if clean else "the connection was lost"
            when = "before it answered" if self._head is None else "in the middle of its answer"
            handler.response_broken(Broken(f"{what} {when}", not self._any))

    # -- llhttp's callbacks -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._trailing = True

    def on_status(self, text: bytes) -> None:
        if not self._complete:
            self._status_text += text

    def on_header(self, name: bytes, value: bytes) -> None:
        # After the head this is a trailer, which a recipient may drop (RFC 9110 section 6.5.1).
        if not self._complete and self._head is None:
            self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status < 100:
            raise ValueError("no status")
        if status == 101 and not self._parser.should_upgrade():
            # llhttp would take what follows for the next answer, and we for a tunnel.
            raise ValueError("a switch to nothing")
        if 100 <= status < 200 and status != 101:
            # An interim answer; the front has sent its own 100 where one was due.
            self._headers = []
            self._status_text = b""
            return
        fields = Fields(self._headers)
        told = fields.get(b"content-length")
        length = None if told is None else int(told)
        chunked = b"transfer-encoding" in fields
        if chunked and b",".join(fields.all(b"transfer-encoding")).lower() != b"chunked":
            raise ValueError("a transfer coding that was not asked for")
        bodiless = self._head_request or status in _NO_BODY
        self._head = ResponseHead(
            status,
            self._status_text if _REASON.fullmatch(self._status_text) else b"",
            fields,
            length,
            delimited=bodiless or chunked or length is not None,
            upgraded=status == 101,
        )
        # Who announces a body where there is none may send it, too.
        clean = not bodiless or not (length or chunked)
        self._reusable = clean and self._parser.should_keep_alive() and not self._head_request
        if self._head_request:
            # llhttp cannot be told that no body follows, so this connection ends here.
            self._complete = True

    def on_body(self, data: bytes) -> None:
        if not self._complete:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._head is not None and not self._complete:
            self._complete = True


UPSTREAM = Factory.forProtocol(UpstreamConnection)
"""Makes the connections."""
# Twisted would log the start and the end of it with every single connection.
UPSTREAM.noisy = False
