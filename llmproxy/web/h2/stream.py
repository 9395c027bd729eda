"""One stream: the channel of one request, with its own flow control both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress, IProducer
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from llmproxy.config.model import Limits
from llmproxy.errors import body_too_large, invalid_request
from llmproxy.http.headers import Fields
from llmproxy.http.targets import check_host, checked_target, target_too_long
from llmproxy.web.body import Full
from llmproxy.web.h2.heads import RequestHead, no_connect
from llmproxy.web.h2.request import StreamRequest
from llmproxy.web.unread import head_size, head_too_large, no_room, too_slow

if TYPE_CHECKING:
    from llmproxy.web.h2.connection import H2Connection

__all__ = ["Stream"]

FULL = 64 * 1024
"""Bytes that wait for a client's window from which on whoever answers is paused, as by Twisted's own."""


class Stream:
    """What a request needs of its channel; it is its own transport, too.

    :ivar number: of the stream.
    :ivar complete: the request has come as a whole.
    :ivar dataBuffer: what its client has no room for yet; ``offset`` is for whoever looks at a transport.
    :ivar answered: nothing more is written to it.
    :ivar broken: its answer is not complete, and must not look as if it were.
    :ivar moved: when something last came of its request, or went of its answer.
    """

    offset = 0
    disconnecting = False

    def __init__(self, connection: H2Connection, number: int) -> None:
        self.connection = connection
        self.site = connection.site
        self.number = number
        self.persistent = True
        self.complete = False
        self.answered = False
        self.broken = False
        self.secure = connection.secure
        self.peer = self.origin = connection.peer
        self.client = connection.peer.client
        self.trusted = connection.trusted
        self.dataBuffer = bytearray()
        self.began = self.moved = self.site.now
        self._producer: Any = None
        self._paused = False
        self.request = StreamRequest(self)

    # -- receiving ----------------------------------------------------------------------------------

    def take(self, head: RequestHead, *, ended: bool) -> None:
        """The head of the request.

        :param ended: no body follows.
        :raises llmproxy.errors.Refusal: it is not served.
        """
        connection, limits = self.connection, self.site.limits
        fields = connection.fields
        if head.fields != fields.raw:
            # A client sends the same fields with request after request.
            fields = connection.fields = Fields(head.fields)
        length = head.length if head.length is not None or ended else 0
        self.request.take(head.method, head.target, fields, length)
        if connection.turned_away is not None:
            raise connection.turned_away
        if head.connects:
            raise no_connect()
        if len(head.fields) > limits.max_fields or head_size(head.target, head.fields) > limits.max_head:
            raise head_too_large(limits)
        if len(head.target) > limits.max_target:
            raise target_too_long(limits.max_target)
        check_host(fields.get(b"host"))
        if b"host" not in fields:
            raise invalid_request("The request has no :authority, and no Host.")
        self.request.uri = checked_target(head.target, fields.get(b"host"))
        if head.length is not None and head.length > limits.max_body:
            raise body_too_large(limits.max_body)

    def body(self, data: bytes) -> None:
        """Bytes of the request."""
        if self.answered:
            return
        self.moved = self.site.now
        request, limits = self.request, self.site.limits
        try:
            request.body.write(data)
        except OSError as cause:
            self.site.log_failure("keeping the body of a request", Failure(cause))
            request.reject(no_room())
        except Full as bound:
            request.reject(no_room(str(bound)))
        else:
            if request.body.size > limits.max_body:
                request.reject(body_too_large(limits.max_body))

    def end(self) -> None:
        """The request has come as a whole."""
        self.complete = True
        if not self.answered:
            self.request.process()

    def lost(self, reason: Failure) -> None:
        """The client takes no answer any more."""
        self.dataBuffer.clear()
        self._producer = None
        answered, self.answered = self.answered, True
        if not answered or self.broken:
            self.request.connectionLost(reason)

    def look(self, now: float, limits: Limits) -> None:
        """End it if it has had its time; see :mod:`llmproxy.web.patience`."""
        if self.dataBuffer:
            if limits.write_timeout and now - self.moved > limits.write_timeout:
                self._give_up("write_timeout")
        elif not self.complete and not self.answered and limits.body_timeout:
            allowed = limits.body_timeout
            if limits.min_body_rate:
                allowed += self.request.body.size / limits.min_body_rate
            if now - self.began > allowed:
                self.request.reject(too_slow("body", "limits.body_timeout"))

    def _give_up(self, why: str) -> None:
        if self.request.entry is not None:
            self.request.entry.error = why
        self.abortConnection()

    # -- what a Request needs -----------------------------------------------------------------------

    @property
    def transport(self) -> Stream:
        """Where an answer is written to."""
        return self

    @property
    def known(self) -> Any:
        """See :class:`~llmproxy.web.channel.ProxyChannel`."""
        return self.connection.known

    @known.setter
    def known(self, known: Any) -> None:
        self.connection.known = known

    def hear(self, fields: Fields) -> None:
        """Take a trusted proxy's word for whose request that is."""
        self.origin = self.site.trusted.origin(fields, self.peer)
        self.client = self.origin.client

    def getPeer(self) -> IAddress:
        """The client's address."""
        return self.connection.getPeer()

    def getHost(self) -> IAddress:
        """The address that the client connected to."""
        return self.connection.getHost()

    def isSecure(self) -> bool:
        """Whether this is TLS."""
        return self.secure

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """The head of an answer that a resource writes by :meth:`twisted.web.http.Request.write`."""
        lines = [
            b"%b: %b\r\n" % (name, value) for name, values in headers.getAllRawHeaders() for value in values
        ]
        self.send_head(b"HTTP/1.1 %b %b\r\n%b\r\n" % (code, reason, b"".join(lines)))

    def send_head(self, head: bytes) -> None:
        """The head of an answer, as HTTP/1.1 would have it."""
        if not self.answered:
            self.connection.sender.head(self, head)

    def write(self, data: bytes) -> None:
        """Bytes of an answer."""
        if self.answered:
            return
        if not self.dataBuffer:
            # What has waited for nothing has not waited long.
            self.moved = self.site.now
        self.dataBuffer += data
        self.connection.sender.some(self)
        if len(self.dataBuffer) > FULL and not self._paused:
            self._pause()

    def writeSequence(self, pieces: Iterable[bytes]) -> None:
        """Bytes of an answer."""
        self.write(b"".join(pieces))

    def requestDone(self, request: object) -> None:
        """The answer is complete."""
        self._producer = None
        self.answered = True
        self.connection.sender.some(self)

    def break_off(self) -> None:
        """Reset the stream once what was written has left."""
        self.answered = self.broken = True
        self.connection.sender.some(self)

    def loseConnection(self) -> None:
        """An answer is not complete, and nothing more comes of it."""
        self.break_off()

    def abortConnection(self) -> None:
        """Reset the stream at once."""
        self.connection.sender.abort(self)

    def become_tunnel(self, receive: Callable[[bytes], object], carried: Callable[[], int]) -> None:
        """Not in HTTP/2."""
        raise AssertionError("nothing switches protocols in HTTP/2")

    # -- flow control -------------------------------------------------------------------------------

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Whoever answers, to be paused while the client takes nothing; push producers only."""
        assert streaming, "answers are pushed"
        assert self._producer is None, "one answer at a time"
        self._producer, self._paused = producer, False
        if len(self.dataBuffer) > FULL:
            self._pause()

    def unregisterProducer(self) -> None:
        """The answer is complete."""
        self._producer = None

    def _pause(self) -> None:
        if self._producer is not None:
            self._paused = True
            self._producer.pauseProducing()

    def sent(self, count: int) -> None:
        """So many bytes have left."""
        del self.dataBuffer[:count]
        self.moved = self.site.now
        if self._paused and not self.dataBuffer:
            self._paused = False
            if self._producer is not None:
                self._producer.resumeProducing()
