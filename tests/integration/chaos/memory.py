"""A group of processes that may have hardly more memory than they have (control groups, version 1 or 2)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from attrs import define

__all__ = ["MemoryGroup", "NoMemoryGroup", "memory_group"]

_KERNEL = Path("/sys/fs/cgroup")
_PROCESSES = Path("/proc")
_PATIENCE = 2.5
"""Seconds until a group is empty: one that the kernel ends for want of memory takes a moment."""


class NoMemoryGroup(Exception):
    """None can be made here; says why."""


@define
class MemoryGroup:
    """One group.  In both versions what a process has already stays with the group that it comes from: it may
    have so much more.

    :ivar root: of the tree of groups.
    :ivar limit: the file that holds the limit, and ``unlimited`` what stands there for none.
    :ivar controller: what the line of its tree has in ``/proc/PID/cgroup``.
    """

    folder: Path
    root: Path
    limit: str
    unlimited: str
    controller: str
    processes: Path = _PROCESSES
    _homes: Sequence[Path] = ()

    def limited(self, more: int) -> None:
        """Its processes may have so many bytes."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / self.limit).write_text(str(more))

    def take(self, pid: int) -> None:
        """Take a process in."""
        self._homes = (self._home(pid), *self._homes)
        (self.folder / "cgroup.procs").write_text(str(pid))

    def _home(self, pid: int) -> Path:
        for line in (self.processes / str(pid) / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if self.controller in controllers.split(","):
                return self.root / path.lstrip("/")
        raise ProcessLookupError(pid)

    def close(self) -> None:
        """Let its processes go to where they came from, and end it."""
        if not self.folder.is_dir():
            return
        with suppress(OSError):
            (self.folder / self.limit).write_text(self.unlimited)
        deadline = time.monotonic() + _PATIENCE
        while True:
            self._empty()
            with suppress(OSError):
                self.folder.rmdir()
                return
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)

    def _empty(self) -> None:
        with suppress(OSError):
            for pid in (self.folder / "cgroup.procs").read_text().split():
                for home in (*self._homes, self.root):
                    with suppress(OSError):
                        (home / "cgroup.procs").write_text(pid)
                        break


def memory_group(name: str, kernel: Path = _KERNEL, processes: Path = _PROCESSES) -> MemoryGroup:
    """One of that name, which is tried out, and is not there until it is limited.

    In version 2 the groups at the top have no limits unless the root gives them; then it does from here on.

    :raises NoMemoryGroup: it cannot be made here.
    """
    if (kernel / "memory" / "memory.limit_in_bytes").exists():
        root, limit, unlimited, controller = kernel / "memory", "memory.limit_in_bytes", "-1", "memory"
    elif _has_memory(kernel / "cgroup.controllers"):
        root, limit, unlimited, controller = kernel, "memory.max", "max", ""
    else:
        raise NoMemoryGroup("this kernel has no groups of processes with a limit")
    group = MemoryGroup(root / name, root, limit, unlimited, controller, processes)
    try:
        switch = root / "cgroup.subtree_control"
        if limit == "memory.max" and not _has_memory(switch):
            switch.write_text("+memory")
        group.limited(1 << 24)
    except OSError as cause:
        raise NoMemoryGroup(f"no group of processes with a limit can be made here: {cause}") from cause
    finally:
        group.close()
    return group


def _has_memory(file: Path) -> bool:
    with suppress(OSError):
        return "memory" in file.read_text().split()
    return False
