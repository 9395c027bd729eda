"""The client's side of one exchange: an answer written straight to its connection.

The channel keeps the order of pipelined requests, and Twisted Web finds the resource; the answer's bytes go
around ``Request.write``, which would cost more than all the rest of the relay.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import Any

from twisted.web.server import Request

from llmproxy.http.headers import Fields, response_head
from llmproxy.reactors.writing import push, write_soon
from llmproxy.relay.upstream import ResponseHead

__all__ = ["Downstream"]

# l_onoff, l_linger of SO_LINGER: close at once with a reset.
_RESET = struct.pack("ii", 1, 0)


_EVENT_STREAM = Fields(
    [(b"Content-Type", b"text/event-stream; charset=utf-8"), (b"Cache-Control", b"no-cache")]
)


class Downstream:
    """Writes one answer.

    :ivar started: the head has left, or is about to with the first bytes.
    :ivar sent: bytes of body written so far, without framing.
    """

    def __init__(self, request: Request) -> None:
        self.started = False
        self.sent = 0
        self._request: Any = request
        self._chunked = False
        self._bodiless = False
        self._pending = b""

    def head(self, head: ResponseHead, own: bytes) -> None:
        """Begin the answer; its head leaves with the first bytes of the body, or by :meth:`flush`.

        :param own: the proxy's own header lines.
        """
        request = self._request
        self._bodiless = request.method == b"HEAD" or head.status in (204, 304)
        self._chunked = request.modern and head.length is None and not self._bodiless and not head.upgraded
        self._begin(
            response_head(
                head.status,
                head.reason,
                head.fields,
                own,
                chunked=self._chunked,
                close=not request.channel.persistent,
                upgrade=head.fields.get(b"upgrade") if head.upgraded else None,
                cors=request.cors,
            ),
            head.status,
        )

    def event_stream(self, own: bytes) -> None:
        """Begin an answer of server-sent events before the backend has begun one."""
        request = self._request
        self._chunked = request.modern
        self._begin(
            response_head(
                200, b"OK", _EVENT_STREAM, own, chunked=self._chunked, close=not request.channel.persistent
            ),
            200,
        )

    def _begin(self, head: bytes, status: int) -> None:
        request = self._request
        self.started = True
        self._pending = head
        # Twisted Web must neither write a head of its own nor frame what follows.
        request.startedWriting = 1
        request.chunked = 0
        request.code = status

    def data(self, pieces: Iterable[bytes]) -> None:
        """Bytes of the body, framed as this client needs it."""
        if self._bodiless:
            pieces = ()
        out, self._pending = self._pending, b""
        for piece in pieces:
            self.sent += len(piece)
            out += b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece
        channel = self._request.channel
        if channel is not None:
            write_soon(channel.transport, out)

    def flush(self) -> None:
        """Let the head go if it still waits for the first bytes."""
        if self._pending:
            self.data(())

    def end(self) -> None:
        """The answer is complete; the connection goes on to the next request, or ends."""
        if self._chunked:
            self._pending += b"0\r\n\r\n"
        if self._pending:
            self.data(())
        if self._request.channel is not None:
            self._request.finish()

    def close(self) -> None:
        """The tunnel is over: what was written leaves, then the connection ends."""
        self.flush()
        if self._request.channel is not None:
            self._request.channel.loseConnection()

    def break_off(self) -> None:
        """The answer is not complete, and must not look as if it were."""
        self.flush()
        channel = self._request.channel
        if channel is None:
            return
        if self._request.modern:
            # The end of the message is missing: chunked without its last chunk, or too few bytes.
            channel.loseConnection()
            return
        # Only the end of the connection delimits this answer, so that a plain close would look complete.
        handle = getattr(channel.transport, "getHandle", lambda: None)()
        if isinstance(handle, socket.socket):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        push(channel.transport)
        channel.transport.abortConnection()
