"""What a process has used, by the kernel's own accounting."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["cpu_seconds", "forget_peak", "peak_bytes", "proportional_bytes", "resident_bytes", "tree"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")
_CPUCLOCK_SCHED = 2
_PROPORTIONAL = re.compile(rb"^Pss: +([0-9]+) kB$", re.MULTILINE)
_PEAK = re.compile(rb"^VmHWM:\s+([0-9]+) kB$", re.MULTILINE)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, all threads, in seconds.

    It is the sum that ``/proc/PID/stat`` tells in ticks of 10 ms, which is too coarse for a short run, read
    from the process's clock instead (``clock_getcpuclockid(3)``, whose number Linux makes like this).

    :raises OSError: one of them has ended.
    """
    return sum(time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) for pid in pids)


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of these processes (``proc(5)``); pages that they share are counted for each.

    :raises FileNotFoundError: one of them has ended.
    """
    return sum(int((_PROC / str(pid) / "statm").read_bytes().split()[1]) * _PAGE for pid in pids)


def _kilobytes(pid: int, file: str, pattern: re.Pattern[bytes]) -> int:
    found = pattern.search((_PROC / str(pid) / file).read_bytes())
    return 0 if found is None else int(found[1]) * 1024


def proportional_bytes(pids: Iterable[int]) -> int:
    """The same, but of a page that several processes share each has its part (PSS, ``proc(5)``).

    :raises OSError: one of them has ended, or is not ours to look at.
    """
    return sum(_kilobytes(pid, "smaps_rollup", _PROPORTIONAL) for pid in pids)


def peak_bytes(pids: Iterable[int]) -> int:
    """The most resident memory that each of them ever had, or since :func:`forget_peak`.

    :raises FileNotFoundError: one of them has ended.
    """
    return sum(_kilobytes(pid, "status", _PEAK) for pid in pids)


def forget_peak(pids: Iterable[int]) -> None:
    """Count the peak from what is resident now (``/proc/PID/clear_refs``, ``proc(5)``).

    :raises OSError: one of them has ended, or is not ours.
    """
    for pid in pids:
        (_PROC / str(pid) / "clear_refs").write_text("5")


def tree(pid: int) -> list[int]:
    """A process and all that it has started.

    :raises FileNotFoundError: it has ended.
    """
    found = [pid]
    for task in (_PROC / str(pid) / "task").iterdir():
        for child in (task / "children").read_text().split():
            found.extend(tree(int(child)))
    return found
