"""Where the backends of a test live, and how somebody else can interfere with them.

The same scenarios run over each kind of world: a world gives a backend's part of llmproxy.yaml, and does
from outside what an operator, the kernel or another program might do.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attrs import define

__all__ = ["ROOT", "ProcessWorld", "World", "until"]

ROOT = Path(__file__).resolve().parent.parent.parent

_T = TypeVar("_T")


def until(what: Callable[[], _T], seconds: float = 10.0, every: float = 0.02) -> _T:
    """What ``what`` returns as soon as it is true.

    :raises AssertionError: it is not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s, last: {found!r}"
        time.sleep(every)


class World(Protocol):
    """Runs the backends of one test."""

    def environment(self) -> dict[str, str]:
        """What the proxy's environment needs for it."""

    def spec(self, route: str, *arguments: str, **settings: Any) -> dict[str, Any]:
        """The backend's part of llmproxy.yaml: the demo server with these arguments."""

    def kill(self, route: str) -> None:
        """End the backend with KILL, behind the proxy's back."""

    def is_running(self, route: str) -> bool:
        """Whether it runs, or anything that it left behind."""

    def starts(self, route: str) -> int:
        """How often it was started."""

    def close(self) -> None:
        """End all that still runs."""


@define
class ProcessWorld:
    """Backends that are child processes of the proxy.

    Each start of a demo server adds a line with its process id to a file.
    """

    folder: Path

    def environment(self) -> dict[str, str]:
        """No Docker engine: one that happens to be here must not add routes to a test."""
        return {"DOCKER_HOST": f"unix://{self.folder}/no-engine.sock"}

    def spec(self, route: str, *arguments: str, **settings: Any) -> dict[str, Any]:
        """See :class:`World`.  ``wrapper`` is a list of words to put in front of the command."""
        wrapper = settings.pop("wrapper", [])
        command = [sys.executable, "-m", "llmproxy.demo", "--host", "127.0.0.1", "--port", "${port}"]
        environment = {
            "LLMPROXY_DEMO_STARTS": str(self._starts(route)),
            "PYTHONPATH": str(ROOT),
            **settings.pop("environment", {}),
        }
        return {
            "runtime": "process",
            "command": [*wrapper, *command, "--model", f"{route}-model", *arguments],
            "models": [f"{route}-model"],
            "environment": environment,
            **settings,
        }

    def _starts(self, route: str) -> Path:
        return self.folder / f"starts-{route}"

    def pids(self, route: str) -> list[int]:
        """Process ids of all its starts, the last one last."""
        file = self._starts(route)
        return [int(line.split()[1]) for line in file.read_text().splitlines()] if file.exists() else []

    def kill(self, route: str) -> None:
        """See :class:`World`."""
        os.kill(self.pids(route)[-1], signal.SIGKILL)

    def is_running(self, route: str) -> bool:
        """See :class:`World`; a zombie does not run."""
        return any(_runs(pid) or _group(pid) for pid in self.pids(route))

    def starts(self, route: str) -> int:
        """See :class:`World`."""
        return len(self.pids(route))

    def close(self) -> None:
        """See :class:`World`."""
        for file in self.folder.glob("starts-*"):
            for pid in self.pids(file.name.removeprefix("starts-")):
                for each in {pid, *_group(pid)}:
                    if _runs(each) and each != os.getpid():
                        os.kill(each, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """State, parent, process group and so on (``proc(5)``); empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _runs(pid: int) -> bool:
    stat = _stat(pid)
    return bool(stat) and stat[0] not in "ZX"


def _group(pid: int) -> list[int]:
    """What runs in the process group or the session that ``pid`` led."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = _stat(int(entry))
            if stat and stat[0] not in "ZX" and str(pid) in stat[2:4]:
                found.append(int(entry))
    return found
