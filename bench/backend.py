"""A canned HTTP/1.1 backend that is far faster than what is measured: ``python -m bench.backend``.

It understands just what the load generator and the proxies send it: requests with a ``Content-Length`` or
no body, one after the other on each connection.  It looks at the query alone:

- none: a small JSON answer, as of a chat completion (also for ``/health``).
- ``n=N&rate=R``: N server-sent events, R each second, each in a chunk and a write of its own; an event
  carries the time at which it was written.
- ``wait=S``: after S seconds, half more or less, the small answer with ``x-bench-times``: when the
  request's head arrived, and when the answer was written.
- ``size=N``: N bytes.

Its port is the first line that it prints; it ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from typing import cast

from bench import loops
from bench.traffic import SMALL_ANSWER, STREAM_HEAD, event, length_of

__all__ = ["Backend", "run"]

BACKLOG = 4096
_STREAM = re.compile(rb"n=([0-9]+)&rate=([0-9.]+)")
_PIECE = bytes(256 * 1024)


class Backend(asyncio.Protocol):
    """One connection.

    :param loop: has the timers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._head = b""
        self._body_left = 0
        self._answer_left = 0
        self._full = False
        self._arrived = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._body_left:
            # Of a large body only the length counts.
            taken = min(self._body_left, len(data))
            self._body_left -= taken
            if self._body_left:
                return
            data = data[taken:]
            self.answer(self._head)
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            self._arrived = time.monotonic()
            head, length = buffer[:end], length_of(buffer, end) or 0
            buffer = buffer[end + 4 :]
            if length > len(buffer):
                self._head, self._body_left, self._buffer = head, length - len(buffer), b""
                return
            buffer = buffer[length:]
            self.answer(head)
        self._buffer = buffer

    def answer(self, head: bytes) -> None:
        """Answer one request."""
        query = head[: head.find(b"\r\n")].split(b" ")[1].partition(b"?")[2]
        if not query:
            self._transport.write(SMALL_ANSWER)
        elif query.startswith(b"wait="):
            # Clients that begin together must not go on in step.
            wait = float(query[5:]) * (0.5 + random.random())
            self._timer = self._loop.call_later(wait, self._stamped, self._arrived)
        elif query.startswith(b"size="):
            self._large(int(query[5:]))
        elif (stream := _STREAM.search(query)) is not None:
            self._stream(int(stream[1]), 1 / float(stream[2]))

    def _stamped(self, arrived: float) -> None:
        first, rest = SMALL_ANSWER.split(b"\r\n", 1)
        times = b"\r\nx-bench-times: %.7f %.7f\r\n" % (arrived, time.monotonic())
        self._transport.write(first + times + rest)

    def _stream(self, count: int, interval: float) -> None:
        self._transport.write(STREAM_HEAD)
        # Streams that begin together must not send together.
        due = self._loop.time() + interval * random.random()

        def token(left: int, due: float) -> None:
            self._transport.write(event(time.monotonic()))
            if left > 1:
                due += interval
                self._timer = self._loop.call_at(due, token, left - 1, due)
            else:
                self._transport.write(b"0\r\n\r\n")

        self._timer = self._loop.call_at(due, token, count, due)

    def _large(self, size: int) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n" % size
        )
        self._answer_left = size
        self._pump()

    def _pump(self) -> None:
        while self._answer_left and not self._full:
            piece = _PIECE[: self._answer_left]
            self._answer_left -= len(piece)
            self._transport.write(piece)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer_left = 0
        if self._timer is not None:
            self._timer.cancel()


async def run() -> None:
    """Serve on a free port of the loopback interface until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Backend, "127.0.0.1", 0, backlog=BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    loops.raise_open_files()
    loops.run(run())
