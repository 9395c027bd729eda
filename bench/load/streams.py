"""Event streams side by side: the time in each event is compared with that of its arrival."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import cast

from bench import traffic
from bench.cpu import resident_bytes
from bench.load.window import Window, connect, latencies

__all__ = ["Listener", "streams"]

LONGEST_EVENT = 1024
"""Bytes of a stream's end that are looked at again with what comes next."""

OPENED_EACH_SECOND = 400
"""Streams that the slowest peer opens in a second, with a margin."""


class Listener(asyncio.Protocol):
    """One event stream.

    :ivar delays: seconds from the writing of each event in the window to its arrival.
    :ivar seen: events that came at any time.
    """

    def __init__(self, request: bytes, window: Window) -> None:
        self.delays: list[float] = []
        self.seen = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._window = window
        self._rest = b""
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._rest + data
        if not self._begun:
            if not data.startswith(b"HTTP/1.1 200 "):
                self._window.fail(f"unexpected answer: {data[:300]!r}")
                self._transport.abort()
                return
            self._begun = True
        last = 0
        for stamp in traffic.stamps.finditer(data):
            self.seen += 1
            last = stamp.end()
            if self._window.open:
                self.delays.append(now - float(stamp[1]))
        self._rest = data[last:][-LONGEST_EVENT:]
        if self._rest.endswith(b"\r\n0\r\n\r\n"):
            self._finish()

    def _finish(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self._window.fail(f"a stream was broken off: {exc}")
            self.ended.set_result(None)


async def streams(options: argparse.Namespace, window: Window) -> dict[str, float]:
    """``--connections`` streams of ``--rate`` events each second."""
    # Each stream goes on past the window's end, also the first, which were opened before all others.
    margin = min(0.5, max(0.1, options.seconds))
    opening = options.connections / OPENED_EACH_SECOND
    count = int(options.rate * (options.warm_up + options.seconds + opening + margin)) + 1
    path = f"{options.path}?n={count}&rate={options.rate:g}"
    request = traffic.request(options.port, path, model=options.model, stream=True)
    listeners = await connect(options, lambda: Listener(request, window))
    cpu, seconds = await window.measure(options.warm_up, options.seconds)
    resident = resident_bytes(options.watch)
    ends = [listener.ended for listener in listeners]
    await asyncio.wait(ends, timeout=10 + 2 * (options.seconds + opening) + 1 / options.rate)
    delays = [value for listener in listeners for value in listener.delays]
    lost = sum(count - listener.seen for listener in listeners)
    if lost or not delays:
        window.fail(f"{lost} events did not come")
    return {
        "count": len(delays),
        "per_second": len(delays) / seconds,
        "cpu_each": cpu / max(1, len(delays)),
        "resident": resident,
        **latencies("latency", delays),
    }
