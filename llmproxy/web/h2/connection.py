"""A connection of HTTP/2: bytes in, and what the ``h2`` library makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from h2 import events
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.config.model import Key, Limits
from llmproxy.errors import Refusal
from llmproxy.http.forwarded import UNKNOWN, peer_origin
from llmproxy.http.headers import NO_FIELDS, Fields
from llmproxy.reactors.writing import Left, unsent
from llmproxy.web.h2.floods import Floods
from llmproxy.web.h2.heads import Malformed, read_request
from llmproxy.web.h2.machine import FRAME, MOST_STREAMS, WINDOW, largest_head, new_machine
from llmproxy.web.h2.sending import Sender
from llmproxy.web.h2.stream import Stream
from llmproxy.web.patience import LAST, TURNED_AWAY, look_at_unsent

if TYPE_CHECKING:
    from llmproxy.web.auth import Authenticator
    from llmproxy.web.channel import ProxyChannel
    from llmproxy.web.hints import Hints
    from llmproxy.web.request import ProxyRequest
    from llmproxy.web.site import ProxySite

__all__ = ["H2Connection"]

LINGER = 2.0
"""Seconds that a client has to go whose connection is ended for what it did."""


@implementer(IPushProducer)
class H2Connection(Protocol):
    """A connection of a client.

    To the site it is what a :class:`~llmproxy.web.channel.ProxyChannel` is: see there for ``peer``,
    ``trusted``, ``known``, ``turn``, ``turned_away``, ``party`` and ``stuck``.

    :ivar streams: those whose answer has not left as a whole.
    :ivar fields: those of the last request.
    :ivar leaving: the client has been told to open no more, or has said that it will not.
    """

    transport: Any
    _log = Logger()

    def __init__(self, site: ProxySite) -> None:
        self.site = site
        self.secure = False
        self.peer = UNKNOWN
        self.trusted = False
        self.known: tuple[Authenticator, Fields, Key, Hints] | None = None
        self.turn = site.now
        self.turned_away: Refusal | None = None
        self.party: str | None = None
        self.stuck: tuple[Left, float] | None = None
        self.streams: dict[int, Stream] = {}
        self.leaving = False
        self._machine = new_machine(site.limits)
        self.sender = Sender(self._machine, self.streams)
        self._floods = Floods.usual()
        self.fields: Fields = NO_FIELDS
        self._last = 0
        # Bytes since the last frame that told us anything: of a header block that does not end.
        self._silent = 0
        self._updates = 0
        self._hanging_up: IDelayedCall | None = None

    # -- the connection -----------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Count it, and say how much may be sent to us."""
        self.secure = ISSLTransport.providedBy(self.transport)
        self.sender.transport = self.transport
        self.meet()
        host = None if self.trusted else getattr(self._peer, "host", None)
        self.turned_away = self.site.opened(cast("ProxyChannel", self), host)
        self.turn = self.site.now
        if self.turned_away is not None and self.site.overrun:
            self.transport.abortConnection()
            return
        self.transport.registerProducer(self, True)
        self._machine.initiate_connection()
        self._machine.increment_flow_control_window(WINDOW - 65535)
        self.sender.flush()
        if self.site.closing:
            self.close_if_idle()

    def meet(self) -> None:
        """See :meth:`llmproxy.web.channel.ProxyChannel.meet`."""
        self._peer, self._host = self.transport.getPeer(), self.transport.getHost()
        address = getattr(self._peer, "host", None)
        self.peer = peer_origin(address, secure=self.secure)
        self.trusted = self.site.trusted.trust(address)

    def getPeer(self) -> IAddress:
        """The client's address."""
        peer: IAddress = self._peer
        return peer

    def getHost(self) -> IAddress:
        """The address that the client connected to."""
        host: IAddress = self._host
        return host

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget it, and tell the requests."""
        self.sender.closed = True
        if self._hanging_up is not None and self._hanging_up.active():
            self._hanging_up.cancel()
        self.site.closed(cast("ProxyChannel", self))
        self._drop_all(reason)

    def _drop_all(self, reason: Failure) -> None:
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.lost(reason)

    # -- what the site asks of a channel ------------------------------------------------------------

    def open_requests(self) -> list[ProxyRequest]:
        """Those that are being answered."""
        return [stream.request for stream in self.streams.values() if stream.complete]

    def unsent(self) -> int:
        """Bytes of answers that its client has not taken yet."""
        return unsent(self.transport) + sum(len(stream.dataBuffer) for stream in self.streams.values())

    def close_if_idle(self) -> None:
        """Take no further request, and end with the last answer."""
        if self.sender.closed:
            return
        if not self.leaving:
            self.leaving = True
            # The library's own would end it for the streams that are open, too.
            goaway = GoAwayFrame(0, last_stream_id=self._last, error_code=int(ErrorCodes.NO_ERROR))
            self.sender.flush(now=True)
            self.transport.write(goaway.serialize())
        self._end_if_over()

    def ended(self) -> None:
        """A stream has had its end."""
        self.turn = self.site.now
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self.leaving and not self.streams and not self.sender.closed:
            self.sender.flush(now=True)
            self.loseConnection()

    def loseConnection(self) -> None:
        """End the connection once what was written has left."""
        self.turn = self.site.now
        self.sender.closed = True
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def look(self, now: float, limits: Limits) -> None:
        """End what has had its time; see :mod:`llmproxy.web.patience`."""
        transport = self.transport
        if look_at_unsent(cast("ProxyChannel", self), now, limits):
            return
        if transport.disconnecting:
            if now - self.turn > (limits.idle_timeout or LAST):
                transport.abortConnection()
            return
        for stream in list(self.streams.values()):
            stream.look(now, limits)
        if self.streams:
            return
        if self.turned_away is not None and now - self.turn > TURNED_AWAY:
            transport.abortConnection()
        elif limits.idle_timeout and now - self.turn > limits.idle_timeout:
            self.close_if_idle()

    def give_up(self, why: str) -> None:
        """End it at once, whatever is on it.

        :param why: for the log, in a word.
        """
        for stream in self.streams.values():
            if stream.request.entry is not None:
                stream.request.entry.error = why
        self.transport.abortConnection()

    # -- receiving ----------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.sender.closed:
            return
        self.sender.gathering = True
        try:
            try:
                happened = self._machine.receive_data(data)
            except ProtocolError as cause:
                self._broken(cause)
                return
            self._silent = 0 if happened else self._silent + len(data)
            limits = self.site.limits
            if self._silent > largest_head(limits) + 2 * FRAME:
                self._enhance_calm("a header block without an end")
                return
            # A request that is taken back in the same breath is not even begun.
            gone = {event.stream_id for event in happened if isinstance(event, events.StreamReset)}
            for event in happened:
                self._heard(event, gone)
        except Exception:
            # Neither may a fault of ours, or of the library's, keep clients waiting.
            self.site.log_failure("reading HTTP/2", Failure())
            self.sender.closed = True
            self.transport.abortConnection()
            self._drop_all(Failure(ConnectionAborted()))
        finally:
            self.sender.gathering = False
            self.sender.flush()

    def _heard(self, event: events.Event, gone: set[int]) -> None:
        if self.sender.closed:
            return
        match event:
            case events.RequestReceived():
                assert event.stream_id is not None
                if event.stream_id not in gone:
                    self._request(event.stream_id, event.headers or [], ended=event.stream_ended is not None)
            case events.DataReceived():
                self._body(event)
            case events.StreamEnded():
                stream = self.streams.get(event.stream_id or 0)
                if stream is not None:
                    stream.end()
            case events.StreamReset():
                self._reset(event.stream_id or 0)
            case events.WindowUpdated():
                self._updates += 1
                # A client that reads has as many as it has had frames, or twice as many.
                if self._updates > 4 * self.sender.frames and not self._floods.updates.take(self._now()):
                    self._enhance_calm("WINDOW_UPDATE")
                else:
                    self._room_again(event.stream_id)
            case events.RemoteSettingsChanged():
                self._count_idle("SETTINGS")
                self.sender.all()
            case events.PingReceived() | events.PingAckReceived():
                self._count_idle("PING")
            case events.PriorityUpdated():
                self._count_idle("PRIORITY")
            case events.UnknownFrameReceived():
                self._count_idle("unknown frames")
            case events.ConnectionTerminated():
                self.leaving = True
                self._count_idle("GOAWAY")
                self._end_if_over()
            case _:
                # Trailers are dropped, as RFC 9110 section 6.5.1 allows; what else there is asks for nothing.
                pass

    def _now(self) -> float:
        seconds: float = self.site.clock.seconds()
        return seconds

    def _count_idle(self, what: str) -> None:
        if not self._floods.idle.take(self._now()):
            self._enhance_calm(what)

    def _request(self, number: int, headers: Any, *, ended: bool) -> None:
        if self.leaving or len(self.streams) >= MOST_STREAMS:
            # The client may ask again elsewhere: nothing was done (RFC 9113 section 8.7).
            self._machine.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        self._last = number
        try:
            head = read_request(headers)
        except Malformed:
            self._machine.reset_stream(number, ErrorCodes.PROTOCOL_ERROR)
            self._count_reset()
            return
        stream = self.streams[number] = Stream(self, number)
        try:
            stream.take(head, ended=ended)
        except Refusal as refusal:
            stream.complete = ended
            stream.request.reject(refusal)
            if self.turned_away is not None:
                self.close_if_idle()
            return
        if not ended and stream.request.fields.get(b"expect", b"").lower() == b"100-continue":
            self._machine.send_headers(number, [(b":status", b"100")])

    def _body(self, event: events.DataReceived) -> None:
        number, size = event.stream_id or 0, event.flow_controlled_length or 0
        if not event.data and event.stream_ended is None:
            self._count_idle("empty DATA")
        stream = self.streams.get(number)
        if stream is not None and event.data:
            stream.body(bytes(event.data))
        # What is taken may be sent anew at once.
        if size and not self.sender.closed:
            self._machine.acknowledge_received_data(size, number)

    def _reset(self, number: int) -> None:
        """A stream was reset, by the client or by the library for something that the client did wrong."""
        stream = self.streams.pop(number, None)
        if stream is not None:
            stream.lost(Failure(ConnectionDone()))
            self.ended()
        self._count_reset()

    def _room_again(self, number: int | None) -> None:
        if not number:
            self.sender.all()
        elif (stream := self.streams.get(number)) is not None and stream.dataBuffer:
            self.sender.some(stream)

    def _count_reset(self) -> None:
        if self.sender.closed:
            return
        if not self._floods.resets.take(self._now()):
            self._enhance_calm("streams that are reset")

    def _enhance_calm(self, what: str) -> None:
        """End the connection of a client that makes work for nothing."""
        self._log.warn(
            "the HTTP/2 connection of {client} is ended: too many of {what}",
            client=self.peer.client,
            what=what,
        )
        self._machine.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        # What it still sends is not even decrypted.
        self.transport.pauseProducing()
        self._hang_up()

    def _broken(self, cause: ProtocolError) -> None:
        # The library has put a GOAWAY with the reason into what is to be sent.
        self._log.debug("HTTP/2 of {client}: {cause}", client=self.peer.client, cause=str(cause))
        self._hang_up()

    def _hang_up(self) -> None:
        self.sender.flush(now=True)
        self.loseConnection()
        # TLS waits for the client to agree to the end, and this one need not be waited for.
        self._hanging_up = self.site.clock.callLater(LINGER, self.transport.abortConnection)
        self._drop_all(Failure(ConnectionAborted()))

    # -- flow control -------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The transport has much to send: send no more, and read nothing that asks for more."""
        self.sender.choked = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The client has caught up."""
        self.sender.choked = False
        self.transport.resumeProducing()
        self.sender.all()

    def stopProducing(self) -> None:
        """The connection is gone; :meth:`connectionLost` comes as well."""
