"""Requests that are held: one on each connection, all answered when the backend is there."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any, cast

from bench import traffic
from bench.load.window import Window, connect

__all__ = ["hold"]


class _Waiter(asyncio.Protocol):
    def __init__(self, request: bytes, window: Window) -> None:
        self.answered: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._request = request
        self._window = window
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self.answered.done():
            return
        if not self._buffer.startswith(b"HTTP/1.1 200 "):
            self._window.fail(f"unexpected answer: {self._buffer[:300]!r}")
        elif len(self._buffer) >= end + 4 + (traffic.length_of(self._buffer, end) or 0):
            self.answered.set_result(time.monotonic())
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self._window.fail(f"a held request lost its connection: {exc}")


async def hold(options: argparse.Namespace, window: Window) -> dict[str, float]:
    """Hold ``--connections`` requests, for ``--seconds`` at most."""
    request = traffic.request(options.port, options.path, model=options.model)
    waiters = await connect(options, lambda: _Waiter(request, window))
    everybody = asyncio.gather(*(waiter.answered for waiter in waiters))
    either: list[asyncio.Future[Any]] = [everybody, window.failed]
    await asyncio.wait(either, timeout=options.seconds, return_when=asyncio.FIRST_COMPLETED)
    answered = [waiter.answered.result() for waiter in waiters if waiter.answered.done()]
    if len(answered) < len(waiters):
        window.fail(f"only {len(answered)} of {len(waiters)} were answered")
        everybody.cancel()
    return {"count": len(answered), "last": max(answered, default=0.0)}
