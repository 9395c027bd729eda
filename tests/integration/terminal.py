"""A real terminal (a pty) with somebody who reads its screen and presses keys."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyte

__all__ = ["Terminal"]

PATIENCE = 20.0

_LOG_IN = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the terminal that of a session of its own, so that its keys send signals."""


class Terminal:
    """The operator's command on a terminal of its own.

    :ivar raw: all bytes that were written to it.
    :ivar settings_at_first: the terminal's settings before the command ran.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        columns: int = 100,
        rows: int = 30,
    ) -> None:
        self.raw = b""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        self._slave = slave
        self._size(columns, rows)
        self.settings_at_first = termios.tcgetattr(slave)
        # Not os.fork: this process may have threads.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOG_IN, sys.executable, "-m", "llmproxy", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={"TERM": "xterm-256color", **environment},
        )
        self.pid = self._process.pid

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """Somebody drags the window's corner."""
        self._screen.resize(rows, columns)
        self._screen.reset()
        self._size(columns, rows)
        os.kill(self.pid, signal.SIGWINCH)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    # -- what is seen -------------------------------------------------------------------------------

    def read(self, seconds: float = 0.0) -> bool:
        """Take in what was written; tells whether there was anything within so many seconds."""
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        data = os.read(self._master, 65536)
        self.raw += data
        # pyte takes the sequences of newer keyboard protocols (CSI < u, CSI > 1 u) for text.
        self._stream.feed(data.replace(b"\x1b[<u", b"").replace(b"\x1b[>1u", b""))
        return True

    def lines(self) -> list[str]:
        """The screen."""
        return [line.rstrip() for line in self._screen.display]

    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines())

    def until(self, *words: str) -> None:
        """Read until one of these stands on the screen.

        :raises AssertionError: none does.
        """
        deadline = time.monotonic() + PATIENCE
        while not any(each in self.text() for each in words):
            assert time.monotonic() < deadline, f"no {words!r} on the screen:\n{self.text()}"
            self.read(0.1)

    def colours(self) -> set[str]:
        """The colours of what stands on the screen."""
        cells = (cell for row in self._screen.buffer.values() for cell in row.values())
        return {cell.fg for cell in cells if cell.data.strip()} - {"default"}

    # -- the end ------------------------------------------------------------------------------------

    def wait(self) -> int:
        """Its exit status, or the number of the signal that ended it, negative; all is read until then."""
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            self.read(0.05)
            assert time.monotonic() < deadline, f"it does not end:\n{self.text()}"
        while self.read(0.05):
            pass
        return int(self._process.returncode)

    def settings(self) -> list[Any]:
        """The terminal's settings now: echo, lines, signals."""
        return termios.tcgetattr(self._slave)

    def is_restored(self) -> bool:
        """Whether the usual screen and the cursor are back, and the mouse belongs to the terminal."""
        modes = {"1049": ("h", "l"), "25": ("l", "h"), "1000": ("h", "l"), "2004": ("h", "l")}
        for mode, (taken, given) in modes.items():
            last_taken = self.raw.rfind(f"\x1b[?{mode}{taken}".encode())
            if last_taken > self.raw.rfind(f"\x1b[?{mode}{given}".encode()):
                return False
        return True
