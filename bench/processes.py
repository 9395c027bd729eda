"""Processes: started, waited for, and ended by their ids."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "PROXY_CORES",
    "ROOT",
    "bare_environment",
    "free_port",
    "get",
    "on_cores",
    "others_cores",
    "python",
    "running",
    "wait_for",
]

ROOT = Path(__file__).resolve().parent.parent

START_LIMIT = 30.0
"""Seconds that a peer may take until it answers."""

END_LIMIT = 15.0
"""Seconds from TERM to KILL."""

_CORES = sorted(os.sched_getaffinity(0))
PROXY_CORES = frozenset(_CORES[-1:])
"""Each proxy has one core; the backend and the load generator share the others, where there are others."""


def others_cores() -> frozenset[int]:
    """Where everything runs that is not measured."""
    return frozenset(_CORES[:-1] or _CORES)


@contextmanager
def on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """What is started within runs on these cores alone; None: on all.

    A child has the cores of its parent from its first thread on, which setting them later would not give.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or _CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cores: frozenset[int] | None = None,
    **options: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block: TERM, and KILL when it does not end.

    :param log: where its output goes.
    """
    with log.open("wb") as output, on_cores(cores):
        options = {"stdin": subprocess.DEVNULL, "stdout": output, **options}
        process = subprocess.Popen(command, cwd=ROOT, stderr=output, env=environment, **options)
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def get(
    port: int, path: str, headers: Sequence[str] = (), *, method: str = "GET", timeout: float = 5.0
) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body.

    :raises OSError: no connection.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, headers=dict(line.split(": ", 1) for line in headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_for(
    name: str,
    port: int,
    path: str,
    process: subprocess.Popen[bytes],
    log: Path,
    headers: Sequence[str] = (),
    *,
    every: float = 0.05,
) -> None:
    """Wait until it answers 200 there.

    :param every: seconds between two tries.
    :raises RuntimeError: it does not, or has ended; with the end of its log.
    """
    deadline = time.monotonic() + START_LIMIT
    status = 0
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            status = get(port, path, headers)[0]
            if status == 200:
                return
        time.sleep(every)
    told = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{name} did not start (last status {status}); its log ends with:\n{told}")


def python(module: str) -> list[str]:
    """The command that runs a module of this project."""
    return [sys.executable, "-m", module]


def bare_environment(**more: str) -> dict[str, str]:
    """An environment in which none of the user's own settings (MAP__..., VLLM_API_KEY) changes a figure."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    return {**kept, **more}
