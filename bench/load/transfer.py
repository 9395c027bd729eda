"""One large answer (``download``) or one large request (``upload``) over one connection."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import cast

from bench import traffic
from bench.cpu import cpu_seconds, forget_peak, peak_bytes, resident_bytes
from bench.load.window import Window

__all__ = ["download", "upload"]

_PIECE = bytes(256 * 1024)


class _Transfer(asyncio.Protocol):
    """Sends ``head`` and ``upload`` bytes, and reads one whole answer, whose bytes it only counts."""

    def __init__(self, head: bytes, upload: int) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._head = head
        self._upload = upload
        self._full = False
        self._answer = b""
        self._expected = -1
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._head)
        self._pump()

    def _pump(self) -> None:
        while self._upload and not self._full:
            piece = _PIECE[: self._upload]
            self._upload -= len(piece)
            self._transport.write(piece)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pump()

    def data_received(self, data: bytes) -> None:
        if self._expected < 0:
            self._answer += data
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = traffic.length_of(self._answer, end)
            if length is None or not self._answer.startswith(b"HTTP/1.1 200 "):
                self._give_up(f"unexpected answer: {self._answer[:300]!r}")
                return
            self._expected, data = length, self._answer[end + 4 :]
        self._received += len(data)
        if self._received >= self._expected and not self.ended.done():
            self.ended.set_result(self._received)
            self._transport.close()

    def _give_up(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(why))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up(f"broken off after {self._received} bytes: {exc}")


async def _transfer(
    options: argparse.Namespace, window: Window, head: bytes, upload: int
) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    before = resident_bytes(options.watch)
    forget_peak(options.watch)
    used, began = cpu_seconds(options.watch), time.monotonic()
    _, transfer = await loop.create_connection(lambda: _Transfer(head, upload), "127.0.0.1", options.port)
    received = 0
    try:
        received = await asyncio.wait_for(transfer.ended, options.seconds)
    except TimeoutError:
        window.fail(f"not over within {options.seconds:g} s")
    except ConnectionError as cause:
        window.fail(str(cause))
    return {
        "count": received,
        "seconds": time.monotonic() - began,
        "cpu": cpu_seconds(options.watch) - used,
        "growth": max(0, peak_bytes(options.watch) - before),
    }


async def download(options: argparse.Namespace, window: Window) -> dict[str, float]:
    """An answer of ``--size`` bytes, within ``--seconds``."""
    request = traffic.request(options.port, f"{options.path}?size={options.size}", model=options.model)
    result = await _transfer(options, window, request, 0)
    if result["count"] != options.size:
        window.fail(f"{result['count']} bytes of {options.size}")
    return result


async def upload(options: argparse.Namespace, window: Window) -> dict[str, float]:
    """A request of ``--size`` bytes, answered within ``--seconds``."""
    head = traffic.head(options.port, options.path, options.size)
    return await _transfer(options, window, head, options.size)
