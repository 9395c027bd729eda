"""Runs programs whose answers are facts; they may be missing, fail, hang, or say anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

__all__ = ["Ran", "Runner", "read_text", "run"]


@frozen
class Ran:
    """How a program ended; ``status`` is None where it could not be run, or did not end."""

    status: int | None
    output: str = ""
    error: str = ""

    @property
    def well(self) -> bool:
        """Whether it did what it was asked."""
        return self.status == 0


Runner = Callable[[Sequence[str], float], Ran]


def run(command: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None) -> Ran:
    """Run a program without input, and have its output.

    :param environment: in addition to that of this process.
    """
    program = shutil.which(command[0])
    if program is None:
        return Ran(None, error="it is not installed")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=None if environment is None else {**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        return Ran(None, error=f"it did not answer within {timeout:g} s")
    except OSError as error:
        return Ran(None, error=os.strerror(error.errno or 0))
    return Ran(done.returncode, _decoded(done.stdout), _decoded(done.stderr))


def _decoded(data: bytes) -> str:
    # wslinfo and other programs of Windows write UTF-16 where nobody tells them otherwise.
    text = data.replace(b"\0", b"") if b"\0" in data else data
    return text.decode("utf-8-sig", "replace").strip()


def read_text(path: str | os.PathLike[str]) -> str | None:
    """What a file says, however it is encoded; None when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return _decoded(file.read(1 << 20))
    except OSError:
        return None
