"""A connection of a client: HTTP/1.1 by llhttp, one request answered after the other.

It takes the place of Twisted Web's ``HTTPChannel`` below the same ``Site`` and ``Request``: what it is to
them is in :class:`ProxyChannel` under "what a Request needs".  What of its bytes is a request is settled by
its :class:`~llmproxy.web.reader.RequestReader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProducer,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from zope.interface import implementer

from llmproxy.errors import Refusal
from llmproxy.http.forwarded import UNKNOWN, peer_origin
from llmproxy.http.headers import SPELLINGS
from llmproxy.reactors.writing import Left, push, unsent, write_soon
from llmproxy.web.accesslog import Entry
from llmproxy.web.patience import look_at
from llmproxy.web.reader import RequestReader
from llmproxy.web.request import new_request_id
from llmproxy.web.unread import closing_answer

if TYPE_CHECKING:
    from llmproxy.config.model import Key, Limits
    from llmproxy.http.headers import Fields
    from llmproxy.web.auth import Authenticator
    from llmproxy.web.hints import Hints
    from llmproxy.web.request import ProxyRequest
    from llmproxy.web.site import ProxySite

__all__ = ["ProxyChannel"]

EAGER = 16 * 1024
"""Bytes that are read while a request is being answered.  To go on reading is how a client that hangs up is
noticed; what comes is kept for later."""

LINGER = 2.0
"""Seconds for which a refused connection is still read, so that the client sees the answer rather than a
reset of its upload (RFC 9112 section 9.6)."""

MOST_LINGERS = 15
"""How many times that is done again while the client takes what was answered before."""


@implementer(IPushProducer)
class ProxyChannel(Protocol):
    """A connection of a client.

    :ivar secure: it is TLS.
    :ivar peer: whoever is at the other end.
    :ivar trusted: it is a proxy that is believed whose requests they are.
    :ivar origin: where the request is from that is being answered; :ivar client: that address, for the log.
    :ivar known: whose the fields of the last request were, by whose word, and what they ask of the proxy.
    :ivar persistent: it goes on after the present answer.
    :ivar asked: it has brought a request.
    :ivar reader: makes requests of the bytes.
    :ivar requests: received as a whole and not answered yet; the first is being answered.
    :ivar turn: when it became the client's turn to speak, by the site's ``now``; the last thing it was given.
    :ivar turned_away: why nothing is served on it.
    :ivar party: whom it is counted for.
    :ivar stuck: what its client has not taken, and since when; see :mod:`llmproxy.web.patience`.
    :ivar carried: tells how many bytes a tunnel has brought its client; ``carried_before``: at the last look.
    :ivar heard: when a tunnel last carried anything.
    """

    transport: Any

    def __init__(self, site: ProxySite) -> None:
        self.site = site
        self.factory = site
        self.persistent = True
        self.asked = False
        self.turn = self.heard = site.now
        self.turned_away: Refusal | None = None
        self.party: str | None = None
        self.stuck: tuple[Left, float] | None = None
        self.carried: Callable[[], int] | None = None
        self.carried_before = 0
        self.secure = False
        self.peer = self.origin = UNKNOWN
        self.client = UNKNOWN.client
        self.trusted = False
        self._heard: Fields | None = None
        self.known: tuple[Authenticator, Fields, Key, Hints] | None = None
        self.reader = RequestReader(self)
        self.requests = self.reader.requests
        # What came while a request was being answered.
        self._early: list[bytes] = []
        self._early_size = 0
        self._answering = False
        self._advancing = False
        self._receive: Callable[[bytes], object] | None = None
        self._lingering: IDelayedCall | None = None
        # Flow control.
        self._choked = False
        self._reading = True
        self._producer: Any = None

    # -- the connection -----------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Count it; beyond the limits it is told so if it asks for anything, or closed at once."""
        transport = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self.secure = ISSLTransport.providedBy(transport)
        self.meet()
        # A proxy that is trusted speaks for many.
        host = None if self.trusted else getattr(self._peer, "host", None)
        self.turned_away = self.site.opened(self, host)
        # It may be the first in a long time.
        self.turn = self.site.now
        if self.turned_away is not None:
            if self.site.overrun:
                transport.abortConnection()
                return
            self._receive = self._turn_away
        transport.registerProducer(self, True)

    def _turn_away(self, data: bytes) -> None:
        assert self.turned_away is not None
        self.refuse(self.turned_away)

    def meet(self) -> None:
        """See who is at the other end, and whether that is a proxy whose word is taken."""
        self._peer, self._host = self.transport.getPeer(), self.transport.getHost()
        address = getattr(self._peer, "host", None)
        self.peer = self.origin = peer_origin(address, secure=self.secure)
        self.client = self.peer.client
        self.trusted, self._heard = self.site.trusted.trust(address), None

    def hear(self, fields: Fields) -> None:
        """Take a trusted proxy's word for whose request that is."""
        if fields is not self._heard:
            self._heard = fields
            self.origin = self.site.trusted.origin(fields, self.peer)
            self.client = self.origin.client

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._receive is not None:
            self.heard = self.site.now
            self._receive(data)
        elif self._answering:
            self._early.append(data)
            self._early_size += len(data)
            if self._early_size > EAGER:
                self._pace_reading()
        else:
            self._read(data)
            self._advance()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget it, and tell the requests."""
        self.site.closed(self)
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        self.carried = None
        for request in self.reader.close():
            request.connectionLost(reason)

    def open_requests(self) -> Sequence[ProxyRequest]:
        """That which is being answered; the others wait for that."""
        return list(self.requests)[:1]

    def unsent(self) -> int:
        """Bytes of answers that its client has not taken yet."""
        return unsent(self.transport)

    def close_if_idle(self) -> None:
        """End the connection when no request is being read or answered on it, else after the answer."""
        self.persistent = False
        if not self.requests and self.reader.coming is None:
            self.loseConnection()

    def look(self, now: float, limits: Limits) -> None:
        """End it if it has had its time."""
        look_at(self, now, limits)

    def give_up(self, why: str) -> None:
        """End it at once, whatever is on it.

        :param why: for the log, in a word.
        """
        for request in self.requests:
            if request.entry is not None:
                request.entry.error = why
        self.transport.abortConnection()

    @property
    def speaks(self) -> bool:
        """It is the client's turn to speak."""
        return not self._answering and self._receive is None

    def _read(self, data: bytes) -> None:
        reader = self.reader
        reader.feed(data)
        if reader.left:
            self._early.insert(0, reader.left)
            self._early_size += len(reader.left)
            reader.left = b""

    # -- answering, one after the other -------------------------------------------------------------

    def _advance(self) -> None:
        """Go on with what has come, until a request is being answered or nothing is left."""
        if self._advancing:
            return
        self._advancing = True
        reader = self.reader
        try:
            while not self._answering and self._receive is None:
                if self.requests:
                    self._answering = self.asked = True
                    if reader.deaf and len(self.requests) == 1:
                        self.persistent = False
                    self.requests[0].process()
                elif reader.refusal is not None:
                    self.refuse(reader.refusal)
                elif self._early:
                    early, self._early = b"".join(self._early), []
                    self._early_size = 0
                    self._pace_reading()
                    self._read(early)
                elif reader.waits:
                    reader.waits = False
                    write_soon(self.transport, b"HTTP/1.1 100 Continue\r\n\r\n")
                else:
                    break
        finally:
            self._advancing = False

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error outside of any resource, once, and end the connection."""
        if self._lingering is not None:
            return
        request_id = new_request_id()
        head, body = closing_answer(refusal, request_id, self.reader.target)
        transport = self.transport
        push(transport)
        transport.write(head + body)
        self.site.access_log.write(
            Entry(
                request_id.decode("ascii"),
                self.client,
                "-",
                "-",
                status=refusal.status,
                outcome="refused",
                sent=len(body),
                at=self.site.clock.seconds(),
                error=refusal.code,
            )
        )
        # Nothing that still comes means anything.
        self._receive = _ignore
        self.turn = self.site.now
        self.reader.drop()
        self.persistent = False
        if self.secure or not hasattr(transport, "loseWriteConnection"):
            # TLS has no half-close: what a TLS transport offers is that of the socket below the session.
            self.loseConnection()
        else:
            transport.unregisterProducer()
            transport.loseWriteConnection()
        self._lingering = self.site.clock.callLater(LINGER, self._stop_lingering, MOST_LINGERS)

    def _stop_lingering(self, left: int) -> None:
        if left and self.unsent():
            # Its client has not taken the answers before this one yet.
            self._lingering = self.site.clock.callLater(LINGER, self._stop_lingering, left - 1)
        else:
            self.transport.abortConnection()

    def become_tunnel(self, receive: Callable[[bytes], object], carried: Callable[[], int]) -> None:
        """Hand the client's bytes to ``receive`` from now on: the connection has switched protocols.

        :param carried: tells how many bytes the client has been sent.
        """
        self._receive, self.carried = receive, carried
        self.heard = self.site.now
        early, self._early = b"".join(self._early), []
        self._early_size = 0
        if early:
            receive(early)
        self._pace_reading()

    # -- what a Request needs -----------------------------------------------------------------------

    def requestDone(self, request: object) -> None:
        """The first request has been answered."""
        assert request is self.requests[0], "requests are answered in order"
        self.requests.popleft()
        self._answering = False
        self.turn = self.site.now
        if not self.persistent:
            # Nor is anything served that has come behind it.
            self.reader.stop()
            self.loseConnection()
            return
        if self._choked or not self._reading:
            self._pace_reading()
        if self.requests or self._early or self.reader.refusal is not None or self.reader.waits:
            self._advance()

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """The head of an answer that a resource writes by :meth:`twisted.web.http.Request.write`."""
        lines = [b"HTTP/1.1 %b %b" % (code, reason)]
        for name, values in headers.getAllRawHeaders():
            # Twisted Web spells all names alike; an answer that is relayed has ours as they are documented.
            lines.extend(b"%b: %b" % (SPELLINGS.get(name, name), value) for value in values)
        if not self.persistent:
            lines.append(b"Connection: close")
        lines.append(b"\r\n")
        write_soon(self.transport, b"\r\n".join(lines))

    def write(self, data: bytes) -> None:
        """Bytes of an answer."""
        write_soon(self.transport, data)

    def writeSequence(self, pieces: Iterable[bytes]) -> None:
        """Bytes of an answer."""
        write_soon(self.transport, b"".join(pieces))

    def getPeer(self) -> IAddress:
        """The client's address."""
        peer: IAddress = self._peer
        return peer

    def getHost(self) -> IAddress:
        """The address that the client connected to."""
        host: IAddress = self._host
        return host

    def isSecure(self) -> bool:
        """Whether this is TLS."""
        return self.secure

    def loseConnection(self) -> None:
        """End the connection once what was written has left."""
        # Its client has the time to take what is left that an idle one has to speak.
        self.turn = self.site.now
        push(self.transport)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    # -- flow control -------------------------------------------------------------------------------

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Whoever answers, to be paused while the client takes nothing; push producers only."""
        assert streaming, "answers are pushed"
        assert self._producer is None, "one answer at a time"
        self._producer = producer
        if self._choked:
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The answer is complete."""
        self._producer = None

    def pauseProducing(self) -> None:
        """The transport has much to send: produce no more, and read no further request."""
        self._choked = True
        if self._producer is not None:
            self._producer.pauseProducing()
        self._pace_reading()

    def resumeProducing(self) -> None:
        """The client has caught up."""
        self._choked = False
        if self._producer is not None:
            self._producer.resumeProducing()
        self._pace_reading()

    def stopProducing(self) -> None:
        """The connection is gone; :meth:`connectionLost` comes as well."""

    def _pace_reading(self) -> None:
        # A client that takes no answers gets no further requests in; while one is answered, reading goes on
        # for as long as what comes is little, see EAGER.
        wanted = self._early_size <= EAGER and (self._answering or not self._choked)
        if wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()


def _ignore(data: bytes) -> None:
    """Bytes that mean nothing any more."""
