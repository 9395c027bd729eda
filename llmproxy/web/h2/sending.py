"""Answers on their way out: as much of each stream as its client's windows and the socket take."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from h2.connection import H2Connection as Machine
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.python.failure import Failure

from llmproxy.web.h2.heads import answer_fields

if TYPE_CHECKING:
    from llmproxy.web.h2.stream import Stream

__all__ = ["Sender"]


class Sender:
    """Sends for all streams of one connection.

    :param streams: those whose answer has not left as a whole; one is taken out with its end.
    :ivar frames: of bodies that were sent.
    :ivar choked: the transport has enough.
    :ivar gathering: what the library has to send waits for the end of what is being read.
    :ivar closed: nothing is sent any more.
    """

    def __init__(self, machine: Machine, streams: dict[int, Stream]) -> None:
        self.transport: Any = None
        self.frames = 0
        self.choked = False
        self.gathering = False
        self.closed = False
        self._machine = machine
        self._streams = streams

    def flush(self, *, now: bool = False) -> None:
        """Hand on what the library has to send.

        :param now: though more may follow at once.
        """
        if self.closed or (self.gathering and not now):
            return
        data = self._machine.data_to_send()
        if data:
            self.transport.write(data)

    def head(self, stream: Stream, head: bytes) -> None:
        """The head of an answer, as HTTP/1.1 would have it."""
        if self.closed:
            return
        try:
            self._machine.send_headers(stream.number, answer_fields(head))
        except ProtocolError:
            self._lost_track(stream)
        self.flush()

    def some(self, stream: Stream) -> None:
        """As much of an answer as there is room for, and its end."""
        if self.closed:
            return
        try:
            while stream.dataBuffer and not self.choked and self._frame(stream):
                pass
            if stream.answered and not stream.dataBuffer:
                self._end(stream)
        except ProtocolError:
            self._lost_track(stream)
        self.flush()

    def all(self) -> None:
        """There is room again: a frame of each in turn, so that none waits for another."""
        waiting = [stream for stream in self._streams.values() if stream.dataBuffer]
        while waiting:
            waiting = [stream for stream in waiting if self._in_turn(stream)]

    def _in_turn(self, stream: Stream) -> bool:
        if self.closed or self.choked or stream.number not in self._streams or not stream.dataBuffer:
            return False
        try:
            if not self._frame(stream):
                return False
        except ProtocolError:
            self._lost_track(stream)
            return False
        if not stream.dataBuffer:
            self.some(stream)
        return True

    def _frame(self, stream: Stream) -> bool:
        machine, buffer = self._machine, stream.dataBuffer
        window = machine.local_flow_control_window(stream.number)
        room = min(len(buffer), window, machine.max_outbound_frame_size)
        if room <= 0:
            return False
        machine.send_data(stream.number, bytes(buffer[:room]))
        self.frames += 1
        # At once, as only so the transport says when it has enough.
        self.flush(now=True)
        stream.sent(room)
        return True

    def _end(self, stream: Stream) -> None:
        if self._streams.pop(stream.number, None) is None:
            # Whoever answers went on when there was room again, and came to the end.
            return
        machine = self._machine
        if stream.broken:
            machine.reset_stream(stream.number, ErrorCodes.INTERNAL_ERROR)
            stream.lost(Failure(ConnectionAborted()))
        else:
            machine.end_stream(stream.number)
            if not stream.complete:
                # It was answered before it had come as a whole: the rest is not wanted (RFC 9113 section
                # 8.1).
                machine.reset_stream(stream.number, ErrorCodes.NO_ERROR)
        stream.connection.ended()

    def abort(self, stream: Stream) -> None:
        """Reset a stream, whatever of its answer has not left."""
        if self._streams.pop(stream.number, None) is None:
            return
        if not self.closed:
            # The library may hold it for closed already.
            with suppress(ProtocolError):
                self._machine.reset_stream(stream.number, ErrorCodes.CANCEL)
            self.flush()
        stream.lost(Failure(ConnectionAborted()))
        stream.connection.ended()

    def _lost_track(self, stream: Stream) -> None:
        """The library holds the stream for closed already; the event that says so is still to come."""
        self._streams.pop(stream.number, None)
        stream.lost(Failure(ConnectionDone()))
        stream.connection.ended()
