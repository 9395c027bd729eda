"""Clients of all kinds that come and go for minutes, while the memory of the proxy is looked at."""

from __future__ import annotations

import argparse
import asyncio
import random
import time

from bench import traffic
from bench.cpu import resident_bytes
from bench.load.window import Window

__all__ = ["churn"]

LOOK_EVERY = 1.0
"""Seconds between looks at the memory."""

REQUESTS = 20
TOKENS = 10
RATE = 50
LARGE = 256 * 1024
PATIENCE = 30.0
"""Seconds that one answer may take."""


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"unexpected answer: {head[:300]!r}")
    length = traffic.length_of(head, len(head))
    if length is None:
        await reader.readuntil(b"\r\n0\r\n\r\n")
    else:
        await reader.readexactly(length)


async def _visit(options: argparse.Namespace, dice: random.Random) -> int:
    """One client: some requests, an upload, a stream, which it may leave half-way; how many requests."""
    reader, writer = await asyncio.open_connection("127.0.0.1", options.port)
    small = traffic.request(options.port, options.path, model=options.model)
    streamed = f"{options.path}?n={TOKENS}&rate={RATE}"
    try:
        for _ in range(REQUESTS):
            writer.write(small)
            await _answer(reader)
        writer.write(traffic.head(options.port, options.path, LARGE) + bytes(LARGE))
        await _answer(reader)
        writer.write(traffic.request(options.port, streamed, model=options.model, stream=True))
        if dice.random() < 0.3:
            await reader.readuntil(b"data: ")
            writer.transport.abort()
        else:
            await _answer(reader)
    finally:
        writer.close()
    return REQUESTS + 2


async def churn(options: argparse.Namespace, window: Window) -> dict[str, float]:
    """``--connections`` clients at a time for ``--seconds``, and one that asks for ``--also`` at times."""
    dice = random.Random(1)
    until = time.monotonic() + options.seconds
    done = 0

    async def clients() -> None:
        nonlocal done
        while time.monotonic() < until and not window.failed.done():
            done += await asyncio.wait_for(_visit(options, dice), PATIENCE)

    async def of_the_sleeper() -> None:
        nonlocal done
        request = traffic.request(options.port, options.also, model=options.model)
        while options.also and time.monotonic() < until and not window.failed.done():
            reader, writer = await asyncio.open_connection("127.0.0.1", options.port)
            writer.write(request)
            await asyncio.wait_for(_answer(reader), PATIENCE)
            writer.close()
            done += 1
            # By then it has been stopped for want of work.
            await asyncio.sleep(options.pause)

    async def guarded(work: asyncio.Future[None]) -> None:
        try:
            await work
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as cause:
            window.fail(f"a client failed: {cause!r}")

    tasks = [
        asyncio.ensure_future(guarded(asyncio.ensure_future(clients()))) for _ in range(options.connections)
    ]
    tasks.append(asyncio.ensure_future(guarded(asyncio.ensure_future(of_the_sleeper()))))
    seen = []
    while time.monotonic() < until and not window.failed.done():
        await asyncio.wait([window.failed], timeout=min(LOOK_EVERY, options.seconds / 10))
        seen.append(resident_bytes(options.watch))
    await asyncio.wait(tasks, timeout=PATIENCE)
    # The first tenth belongs to what only a beginning needs.
    settled = seen[len(seen) // 10 :]
    half = len(settled) // 2
    return {
        "count": done,
        "first_half": sum(settled[:half]) / max(1, half),
        "second_half": sum(settled[half:]) / max(1, len(settled) - half),
        "last": settled[-1],
    }
