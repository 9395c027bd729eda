"""``python -m bench.load KIND --port PORT --path PATH ...``"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence

from bench import loops
from bench.load.churn import churn
from bench.load.hold import hold
from bench.load.requests import requests
from bench.load.streams import streams
from bench.load.transfer import download, upload
from bench.load.window import Window
from bench.traffic import MODEL

KINDS: dict[str, Callable[[argparse.Namespace, Window], Awaitable[dict[str, float]]]] = {
    "requests": requests,
    "streams": streams,
    "hold": hold,
    "download": download,
    "upload": upload,
    "churn": churn,
}


async def _run(options: argparse.Namespace) -> dict[str, float]:
    window = Window(options.watch, asyncio.get_running_loop())
    result = await KINDS[options.kind](options, window)
    if window.failure:
        raise SystemExit(f"bench.load: {window.failure}")
    return result


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, run and print the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.load")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--also", default="")
    parser.add_argument("--pause", type=float, default=3.0)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--watch", type=int, action="append", default=[])
    loops.raise_open_files()
    print(json.dumps(loops.run(_run(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main(sys.argv[1:])
