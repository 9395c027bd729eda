"""What a process has used, by the kernel's own accounting (``proc(5)``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["cpu_seconds", "resident_bytes", "tree"]

_TICK = float(os.sysconf("SC_CLK_TCK"))
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, all threads, in seconds.

    The kernel tells whole ticks (10 ms as a rule), so what is measured should use many of them.

    :raises FileNotFoundError: one of them has ended.
    """
    ticks = 0
    for pid in pids:
        # The second field, the command's name, may hold spaces and parentheses.
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of these processes; pages that they share are counted for each.

    :raises FileNotFoundError: one of them has ended.
    """
    return sum(int((_PROC / str(pid) / "statm").read_bytes().split()[1]) * _PAGE for pid in pids)


def tree(pid: int) -> list[int]:
    """A process and all that it has started.

    :raises FileNotFoundError: it has ended.
    """
    found = [pid]
    for task in (_PROC / str(pid) / "task").iterdir():
        for child in (task / "children").read_text().split():
            found.extend(tree(int(child)))
    return found
