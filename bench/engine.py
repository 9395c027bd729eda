"""A model server that starts listening late: ``python -m bench.engine PORT RECORD DELAY``.

DELAY is a time in seconds, or the path of a file: it listens once that file is there.  By
``CLOCK_MONOTONIC`` it notes when it listened, when its first healthy answer left, and when the first and the
last other request arrived: one JSON object, written to the file RECORD by the time each of these is
answered.  Each process adds a line to the file RECORD.starts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from bench import loops
from bench.backend import BACKLOG, Backend

__all__ = ["record_of", "serve", "starts_of"]

LIFETIME = 180.0
"""Seconds after which it ends in any case, should nobody stop it."""

LOOK_EVERY = 0.01
"""Seconds between looks at the file that it waits for."""

SETTLED = 0.1
"""Seconds between two writings of what was noted: not once for each of thousands."""


def starts_of(record: Path) -> Path:
    """Where each process of this record adds its line."""
    return record.with_name(record.name + ".starts")


def record_of(record: Path) -> dict[str, float]:
    """What was noted.

    :raises FileNotFoundError: nothing was.
    """
    found: dict[str, float] = json.loads(record.read_text())
    return found


async def serve(port: int, record: Path, delay: str) -> None:
    """Serve ``port`` when it is time."""
    with starts_of(record).open("a") as starts:
        starts.write("started\n")
    loop = asyncio.get_running_loop()
    noted: dict[str, float] = {"requests": 0}
    writing: asyncio.TimerHandle | None = None

    def write() -> None:
        nonlocal writing
        writing = None
        unfinished = record.with_name(record.name + ".new")
        unfinished.write_text(json.dumps(noted))
        unfinished.rename(record)

    class Engine(Backend):
        def answer(self, head: bytes) -> None:
            nonlocal writing
            arrived = time.monotonic()
            if head.split(b" ", 2)[1] == b"/health":
                super().answer(head)
                noted.setdefault("healthy", time.monotonic())
                return
            noted["requests"] += 1
            noted["last_arrived"] = arrived
            if "arrived" not in noted:
                noted["arrived"] = arrived
                write()
            elif writing is None:
                writing = loop.call_later(SETTLED, write)
            super().answer(head)

    try:
        await asyncio.sleep(float(delay))
    except ValueError:
        while not Path(delay).exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(LOOK_EVERY)
    server = await loop.create_server(Engine, "127.0.0.1", port, backlog=BACKLOG)
    noted["listening"] = time.monotonic()
    await asyncio.sleep(LIFETIME)
    server.close()


if __name__ == "__main__":
    loops.raise_open_files()
    loops.run(serve(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
