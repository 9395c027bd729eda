"""Small requests over connections that are kept alive, each as soon as the last was answered."""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from typing import cast

from bench import traffic
from bench.load.window import Window, connect, latencies

__all__ = ["Requester", "requests"]

_TIMES = re.compile(rb"\r\nx-bench-times: ([0-9.]+) ([0-9.]+)", re.IGNORECASE)


class Requester(asyncio.Protocol):
    """Requests on one connection, one after the other.

    :ivar whole: seconds from each request to the end of its answer.
    :ivar on_the_way: the same to the answer's first byte, less the time that the request was the backend's.
    """

    def __init__(self, request: bytes, window: Window) -> None:
        self.whole: list[float] = []
        self.on_the_way: list[float] = []
        self._request = request
        self._window = window
        self._buffer = b""
        self._first = 0.0
        self._stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        else:
            self._first = time.monotonic()
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return
        length = traffic.length_of(data, end)
        if length is None or not data.startswith(b"HTTP/1.1 200 "):
            self._window.fail(f"unexpected answer: {data[:300]!r}")
            self._stopped = True
            self._transport.abort()
            return
        if len(data) < end + 4 + length:
            self._buffer = data
            return
        self._buffer = b""
        if self._window.open:
            self.whole.append(time.monotonic() - self._sent)
            times = _TIMES.search(data, 0, end)
            if times is not None:
                self.on_the_way.append(self._first - self._sent - (float(times[2]) - float(times[1])))
        if self._stopped:
            self._transport.close()
        else:
            self._send()

    def stop(self) -> None:
        """Close the connection once the present request is answered."""
        self._stopped = True

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._stopped:
            self._window.fail(f"the connection was lost: {exc}")


async def requests(options: argparse.Namespace, window: Window) -> dict[str, float]:
    """Small requests on ``--connections`` connections."""
    request = traffic.request(options.port, options.path, model=options.model)
    clients = await connect(options, lambda: Requester(request, window))
    cpu, seconds = await window.measure(options.warm_up, options.seconds)
    for client in clients:
        client.stop()
    whole = [value for client in clients for value in client.whole]
    on_the_way = [value for client in clients for value in client.on_the_way]
    if not whole:
        window.fail("no request was answered")
    result = {
        "count": len(whole),
        "per_second": len(whole) / seconds,
        "cpu_each": cpu / max(1, len(whole)),
        **latencies("latency", whole),
    }
    if on_the_way:
        result |= latencies("on_the_way", on_the_way)
    return result
