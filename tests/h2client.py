"""A client of HTTP/2 in memory, by the library's own state machine for clients."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from h2.config import H2Configuration
from h2.connection import H2Connection as Machine
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from hyperframe.frame import Frame
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from llmproxy.web.h2.connection import H2Connection
from llmproxy.web.site import ProxySite
from tests.unit.test_front import TLSTransport

__all__ = ["Answer", "H2Client"]


@define
class Answer:
    """What has come on one stream.

    :ivar held: bytes of body that the client has not made room for again.
    """

    status: int = 0
    fields: dict[bytes, bytes] = field(factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None
    interim: list[bytes] = field(factory=list)
    held: int = 0


class H2Client:
    """One connection to the front.

    :param reads: streams are read as they come, and windows opened again; else see :meth:`open_window`.
    """

    def __init__(
        self, site: ProxySite, *, reads: bool = True, address: str = "192.0.2.9", key: bytes = b"client"
    ) -> None:
        self.transport = TLSTransport(peerAddress=IPv4Address("TCP", address, 5000))
        self.channel: Any = H2Connection(site)
        self.machine = Machine(H2Configuration(client_side=True, header_encoding=None))
        self.reads = reads
        self.key = key
        self.answers: dict[int, Answer] = {}
        self.goaway: ConnectionTerminated | None = None
        self.events: list[Event] = []
        self.gone = False
        self.machine.initiate_connection()
        self.channel.makeConnection(self.transport)
        self.flush()

    # -- saying -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand over what the client has to say, and take what it is told, until both are silent."""
        for _ in range(1000):
            said = self.machine.data_to_send()
            if said and not self.gone:
                self.channel.dataReceived(said)
            if not self._take() and not said:
                return
        raise AssertionError("they go on for ever")

    def raw(self, data: bytes) -> None:
        """Bytes that no honest client would send."""
        self.channel.dataReceived(data)
        self._take()

    def crude(self, data: bytes) -> list[Frame]:
        """The same, where the library would not know of the stream: the frames that come back."""
        self.channel.dataReceived(data)
        answer = memoryview(bytes(self.transport.value()))
        self.transport.clear()
        frames = []
        while answer:
            frame, length = Frame.parse_frame_header(answer[:9])
            frame.parse_body(answer[9 : 9 + length])
            frames.append(frame)
            answer = answer[9 + length :]
        return frames

    def head(self, method: bytes, path: bytes, *fields: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The header fields of a request."""
        usual = [(b":method", method), (b":scheme", b"https"), (b":authority", b"h"), (b":path", path)]
        return [*usual, (b"authorization", b"Bearer " + self.key), *fields]

    def ask(
        self,
        method: bytes,
        path: bytes,
        body: bytes | None = None,
        *fields: tuple[bytes, bytes],
        flush: bool = True,
    ) -> int:
        """One request; its stream."""
        stream = int(self.machine.get_next_available_stream_id())
        self.answers[stream] = Answer()
        self.machine.send_headers(stream, self.head(method, path, *fields), end_stream=body is None)
        if body is not None:
            for at in range(0, len(body), 16384):
                self.machine.send_data(stream, body[at : at + 16384])
                self.flush()
            self.machine.end_stream(stream)
        if flush:
            self.flush()
        return stream

    def get(self, path: bytes, *fields: tuple[bytes, bytes]) -> int:
        return self.ask(b"GET", path, None, *fields)

    def open_window(self, size: int, stream: int | None = None) -> None:
        """Room for so many bytes more."""
        self.machine.increment_flow_control_window(size, stream)
        self.flush()

    def cancel(self, stream: int) -> None:
        """Take no more of a stream."""
        self.machine.reset_stream(stream, 8)
        self.flush()

    def leave(self) -> None:
        if not self.gone:
            self.gone = True
            self.channel.connectionLost(Failure(ConnectionDone()))

    # -- hearing ------------------------------------------------------------------------------------

    def _take(self) -> bool:
        data = bytes(self.transport.value())
        self.transport.clear()
        if not data:
            return False
        for event in self.machine.receive_data(data):
            self.events.append(event)
            self._heard(event)
        return True

    def _heard(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaway = event
            return
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, ResponseReceived):
            fields = dict(event.headers or [])
            answer.status, answer.fields = int(fields.pop(b":status")), fields
        elif isinstance(event, InformationalResponseReceived):
            answer.interim.append(dict(event.headers or [])[b":status"])
        elif isinstance(event, DataReceived):
            answer.body += event.data or b""
            size = event.flow_controlled_length or 0
            if self.reads:
                self.machine.acknowledge_received_data(size, event.stream_id or 0)
            else:
                answer.held += size
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            answer.reset = int(event.error_code)

    def answer(self, stream: int) -> Answer:
        self.flush()
        return self.answers[stream]
