"""The load generator: ``python -m bench.load``, a process of its own for each measurement.

Two kinds of load, each with a warm-up before the measured window: ``requests`` sends small requests over
connections that are kept alive, each as soon as the last was answered; ``streams`` opens event streams side
by side and compares the time in each event with that of its arrival.  The processor time of the processes in
``--watch`` is read at both ends of the window.  The result is one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import cast

from bench.backend import stamp_pattern
from bench.cpu import cpu_seconds

__all__ = ["main", "percentile"]

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of all values do not exceed; NaN without values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Window:
    """The measured part of a run.

    :ivar open: what happens now counts.
    :ivar failure: what went wrong first.
    """

    def __init__(self, watch: list[int], loop: asyncio.AbstractEventLoop) -> None:
        self.open = False
        self.failure = ""
        self.failed = loop.create_future()
        self._watch = watch

    def fail(self, why: str) -> None:
        """End the run: a proxy that answers wrongly is not measured."""
        if not self.failed.done():
            self.failed.set_result(None)
            self.failure = why

    async def measure(self, warm_up: float, seconds: float) -> tuple[float, float]:
        """Sleep through it; processor time used and time passed, in seconds."""
        await asyncio.wait([self.failed], timeout=warm_up)
        used, began = cpu_seconds(self._watch), time.monotonic()
        self.open = True
        await asyncio.wait([self.failed], timeout=seconds)
        self.open = False
        return cpu_seconds(self._watch) - used, time.monotonic() - began


class Requester(asyncio.Protocol):
    """Small requests on one connection, one after the other.

    :ivar first_bytes: seconds until the first byte of each answer.
    :ivar whole: seconds until the last.
    """

    def __init__(self, request: bytes, window: Window) -> None:
        self.first_bytes: list[float] = []
        self.whole: list[float] = []
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
        if not self._buffer:
            self._first = time.monotonic()
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, end)
        if length is None or not self._buffer.startswith(b"HTTP/1.1 200 "):
            self._window.fail(f"unexpected answer: {self._buffer[:300]!r}")
            self._transport.abort()
            return
        if len(self._buffer) < end + 4 + int(length[1]):
            return
        self._buffer = b""
        if self._window.open:
            self.first_bytes.append(self._first - self._sent)
            self.whole.append(time.monotonic() - self._sent)
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


class Listener(asyncio.Protocol):
    """One event stream.

    :ivar delays: seconds from the writing of each event in the window to its arrival.
    :ivar seen: events that came at any time.
    """

    def __init__(self, request: bytes, window: Window) -> None:
        self.delays: list[float] = []
        self.seen = 0
        self.ended = asyncio.get_running_loop().create_future()
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
        for stamp in stamp_pattern.finditer(data):
            self.seen += 1
            last = stamp.end()
            if self._window.open:
                self.delays.append(now - float(stamp[1]))
        self._rest = data[last:]
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


def _request(options: argparse.Namespace, path: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{options.port}", "User-Agent: bench", "Accept: */*"]
    lines += options.header
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _latencies(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p50": percentile(values, 0.50), f"{name}_p99": percentile(values, 0.99)}


async def requests(options: argparse.Namespace, window: Window) -> dict[str, float]:
    """Small requests on ``--connections`` connections."""
    loop = asyncio.get_running_loop()
    request = _request(options, options.path)
    clients = []
    for _ in range(options.connections):
        made = await loop.create_connection(lambda: Requester(request, window), "127.0.0.1", options.port)
        clients.append(made[1])
    cpu, seconds = await window.measure(options.warm_up, options.seconds)
    for client in clients:
        client.stop()
    whole = [value for client in clients for value in client.whole]
    first = [value for client in clients for value in client.first_bytes]
    if not whole:
        window.fail("no request was answered")
    return {
        "count": len(whole),
        "per_second": len(whole) / seconds,
        "cpu_each": cpu / max(1, len(whole)),
        **_latencies("latency", whole),
        **_latencies("first_byte", first),
    }


async def streams(options: argparse.Namespace, window: Window) -> dict[str, float]:
    """``--connections`` streams of ``--rate`` events each second."""
    loop = asyncio.get_running_loop()
    # Each stream goes on past the window's end, whichever was opened first.
    count = int(options.rate * (options.warm_up + options.seconds + 0.5)) + 1
    request = _request(options, f"{options.path}?n={count}&rate={options.rate:g}")
    listeners = []
    for _ in range(options.connections):
        made = await loop.create_connection(lambda: Listener(request, window), "127.0.0.1", options.port)
        listeners.append(made[1])
    cpu, seconds = await window.measure(options.warm_up, options.seconds)
    ends: list[asyncio.Future[None]] = [listener.ended for listener in listeners]
    await asyncio.wait(ends, timeout=10 + 0.5 * options.seconds)
    delays = [value for listener in listeners for value in listener.delays]
    lost = sum(count - listener.seen for listener in listeners)
    if lost or not delays:
        window.fail(f"{lost} events did not come")
    return {
        "count": len(delays),
        "per_second": len(delays) / seconds,
        "cpu_each": cpu / max(1, len(delays)),
        **_latencies("latency", delays),
    }


async def _run(options: argparse.Namespace) -> dict[str, float]:
    window = Window(options.watch, asyncio.get_running_loop())
    result = await (requests if options.kind == "requests" else streams)(options, window)
    if window.failure:
        raise SystemExit(f"bench.load: {window.failure}")
    return result


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, run and print the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.load")
    parser.add_argument("kind", choices=("requests", "streams"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--watch", type=int, action="append", default=[])
    print(json.dumps(asyncio.run(_run(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main(sys.argv[1:])
