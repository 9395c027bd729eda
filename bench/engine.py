"""A model server that starts listening late: ``python -m bench.engine PORT DELAY RECORD``.

It writes down, by ``CLOCK_MONOTONIC``, when it listened, when its first healthy answer left and when the
first other request arrived: one JSON object in the file RECORD, once all three are known.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from bench.backend import Backend

__all__ = ["serve"]

LIFETIME = 120.0
"""Seconds after which it ends in any case, should nobody stop it."""


async def serve(port: int, delay: float, record: Path) -> None:
    """Serve ``port`` after ``delay`` seconds."""
    times: dict[str, float] = {}

    class Engine(Backend):
        def answer(self, head: bytes) -> None:
            arrived = time.monotonic()
            super().answer(head)
            if head.split(b" ", 2)[1] == b"/health":
                times.setdefault("healthy", time.monotonic())
            elif "arrived" not in times:
                times["arrived"] = arrived
                record.write_text(json.dumps(times))

    await asyncio.sleep(delay)
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    times["listening"] = time.monotonic()
    await asyncio.sleep(LIFETIME)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])))
