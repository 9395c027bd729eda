"""Backends of llmproxy that are started on demand: ``bench.engine`` as a child process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from bench.peers import AUTHORIZATION, Peer
from bench.processes import ROOT, get

__all__ = ["ask", "sleeper", "state"]

ASK_LIMIT = 60.0
"""Seconds."""


def sleeper(record: Path, delay: str, **more: object) -> dict[str, Any]:
    """The settings of one.

    :param record: where it notes what happened.
    :param delay: see :mod:`bench.engine`.
    """
    return {
        "runtime": "process",
        "engine": "generic",
        "command": [sys.executable, "-m", "bench.engine", "${port}", str(record), delay],
        "cwd": str(ROOT),
        "stop_grace": 2,
        **more,
    }


def ask(proxy: Peer, path: str, method: str = "GET") -> bytes:
    """One request of the operator's or a client's; its answer.

    :raises RuntimeError: it is not 200 or 202.
    """
    status, body = get(proxy.port, path, (AUTHORIZATION,), method=method, timeout=ASK_LIMIT)
    if status not in (200, 202):
        raise RuntimeError(f"{method} {path} was answered with {status}: {body[:500]!r}")
    return body


def state(proxy: Peer, name: str) -> dict[str, Any]:
    """What the admin API tells of a backend."""
    return cast("dict[str, Any]", json.loads(ask(proxy, f"/api/backends/{name}")))


def stop(proxy: Peer, name: str) -> None:
    """Stop it, and wait for that."""
    ask(proxy, f"/api/backends/{name}/stop?wait=1", "POST")
