"""How the benchmark's own processes run: on uvloop where it is installed, with many files open."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar, cast

__all__ = ["name", "raise_open_files", "run"]

T = TypeVar("T")

WANTED_FILES = 65536


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if find_spec("uvloop") is None:
        return None
    return cast(Callable[[], asyncio.AbstractEventLoop], import_module("uvloop").new_event_loop)


def name() -> str:
    """What the backend and the load generator run on."""
    return "asyncio" if _factory() is None else f"uvloop {import_module('uvloop').__version__}"


def run(main: Coroutine[Any, Any, T]) -> T:
    """As :func:`asyncio.run`, on the faster loop."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(main)


def raise_open_files() -> int:
    """Let this process and its children open as many files as are allowed; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < WANTED_FILES:
        try:
            # Root may.
            resource.setrlimit(resource.RLIMIT_NOFILE, (WANTED_FILES, WANTED_FILES))
        except (ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (WANTED_FILES, hard))
    return WANTED_FILES
