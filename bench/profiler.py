"""Where llmproxy spends its time under a scenario: py-spy beside it, and a short list of what it saw."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from bench.peers import Peer

__all__ = ["Profiler", "summary"]

RATE = 250
"""Looks each second."""

LISTED = 30

WRITE_LIMIT = 30.0
"""Seconds until py-spy has written what it saw, once the proxy has ended."""


def _py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def summary(lines: Iterable[str]) -> list[tuple[str, float, float]]:
    """Of each function, its share of all samples: alone, and with what it has called.

    :param lines: ``outermost;...;innermost COUNT``, as py-spy and flame graphs write stacks.
    """
    alone: Counter[str] = Counter()
    with_called: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        if not count.isdigit():
            continue
        frames = stack.split(";")
        alone[frames[-1]] += int(count)
        for frame in set(frames):
            with_called[frame] += int(count)
    whole = max(1, sum(alone.values()))
    return [(frame, count / whole, with_called[frame] / whole) for frame, count in alone.most_common()]


class Profiler:
    """Looks into each llmproxy that is started, until that ends.

    :param folder: where the stacks are written, a file for each: flame graph tools read them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._command = _py_spy()
        if self._command is None:
            raise RuntimeError("--profile needs py-spy: pip install py-spy")

    def watch(self, peer: Peer) -> None:
        """Look into this one."""
        assert self._command is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        output = self._folder / f"{len(self._running) + 1}.txt"
        command = [self._command, "record", "--pid", str(peer.pid), "--output", str(output)]
        command += [
            "--format",
            "raw",
            "--function",
            "--rate",
            str(RATE),
            "--duration",
            "86400",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._running.append((process, output))

    def close(self) -> None:
        """Wait until all is written; the proxies have ended."""
        for process, _ in self._running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(WRITE_LIMIT)
            if process.poll() is None:
                process.kill()
                process.wait()

    def tell(self, tell: Callable[[str], None]) -> None:
        """Tell what was seen most."""
        for _, output in self._running:
            if not output.exists():
                tell(f"nothing was seen for {output.name}")
                continue
            tell(f"{output}   (share alone, share with what it calls)")
            with output.open() as lines:
                for frame, alone, with_called in summary(lines)[:LISTED]:
                    tell(f"  {alone:6.1%} {with_called:7.1%}  {frame}")
