"""The measured part of a run, and what all kinds of load share."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from bench.cpu import cpu_seconds
from bench.figures import percentile
from bench.traffic import KEY

__all__ = ["Window", "connect", "latencies"]

P = TypeVar("P", bound=asyncio.Protocol)

AT_ONCE = 64
"""Connections that are opened side by side: fewer than any backlog."""


class Window:
    """Counts what happens while it is open.

    :param watch: the processes whose time is read at both ends.
    :ivar open: what happens now counts.
    :ivar failure: what went wrong first.
    """

    def __init__(self, watch: list[int], loop: asyncio.AbstractEventLoop) -> None:
        self.open = False
        self.failure = ""
        self.failed: asyncio.Future[None] = loop.create_future()
        self._watch = watch

    def fail(self, why: str) -> None:
        """End the run: a proxy that answers wrongly is not measured."""
        if not self.failed.done():
            self.failed.set_result(None)
            self.failure = why.replace(KEY, "(key)")

    async def measure(self, warm_up: float, seconds: float) -> tuple[float, float]:
        """Sleep through it; processor time used and time passed, in seconds."""
        await asyncio.wait([self.failed], timeout=warm_up)
        used, began = cpu_seconds(self._watch), time.monotonic()
        self.open = True
        await asyncio.wait([self.failed], timeout=seconds)
        self.open = False
        return cpu_seconds(self._watch) - used, time.monotonic() - began


async def connect(options: argparse.Namespace, make: Callable[[], P]) -> list[P]:
    """``--connections`` connections, some at a time.

    :raises OSError: one cannot be made.
    """
    loop = asyncio.get_running_loop()
    made: list[P] = []
    for first in range(0, options.connections, AT_ONCE):
        several = range(min(AT_ONCE, options.connections - first))
        pairs = await asyncio.gather(
            *(loop.create_connection(make, "127.0.0.1", options.port) for _ in several)
        )
        made += [protocol for _, protocol in pairs]
    return made


def latencies(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile, in seconds."""
    return {f"{name}_p50": percentile(values, 0.50), f"{name}_p99": percentile(values, 0.99)}
