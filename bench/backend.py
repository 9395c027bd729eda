"""A canned HTTP/1.1 backend that is far faster than what is measured: ``python -m bench.backend``.

It understands just what the load generator and the proxies send it: requests with short heads, with a
``Content-Length`` or no body, one after the other on each connection.

- ``/health``, and every path that is not named here: a small JSON answer.
- ``/stream?n=N&rate=R``: N server-sent events, R each second, each in a chunk and a write of its own.  An
  event carries the time at which it was written (``CLOCK_MONOTONIC``, one clock for all processes of a
  machine).

Its port is the first line that it prints; it ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
from typing import cast

__all__ = ["SMALL_BODY", "Backend", "run", "stamp_pattern"]

SMALL_BODY = b'{"id":"cmpl-1","object":"chat.completion","model":"bench","choices":[{"text":"Hello"}]}'

_SMALL = (
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(SMALL_BODY), SMALL_BODY)
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
# An event of a chat completion, as vLLM writes it, with the time in it.
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"bench","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,'
    b'"finish_reason":null}],"t":%.7f}\n\n'
)
stamp_pattern = re.compile(rb'"t":([0-9.]+)}')
"""Finds the times in a stream."""

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_QUERY = re.compile(rb"n=([0-9]+)&rate=([0-9.]+)")


class Backend(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            self.answer(head)

    def answer(self, head: bytes) -> None:
        """Answer one request."""
        target = head.split(b" ", 2)[1]
        if target.startswith(b"/stream?"):
            query = _QUERY.search(target)
            count, rate = (int(query[1]), float(query[2])) if query else (1, 50.0)
            self._stream(count, 1 / rate)
        else:
            self._transport.write(_SMALL)

    def _stream(self, count: int, interval: float) -> None:
        self._transport.write(_STREAM_HEAD)
        # Streams that begin together must not send together.
        due = self._loop.time() + interval * random.random()

        def token(left: int, due: float) -> None:
            event = _EVENT % self._loop.time()
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            if left > 1:
                due += interval
                self._timer = self._loop.call_at(due, token, left - 1, due)
            else:
                self._transport.write(b"0\r\n\r\n")

        self._timer = self._loop.call_at(due, token, count, due)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def run() -> None:
    """Serve on a free port of the loopback interface until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Backend, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(run())
