"""How the engine sends a service's output: in frames, with time and task in front of each line.  Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import define, field, frozen

from llmproxy.runtimes.docker_state import nanoseconds

__all__ = ["Frames", "Line", "read_line"]

HEADER = 8
"""Bytes in front of each frame: the stream, three zeros, and the length (Docker Engine API,
``ContainerAttach``, "Stream format")."""

_LINE = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\dT\S{1,40}) (?:(?P<details>com\.docker\.swarm\.\S{0,2000}) )?(?P<text>.*)",
    re.DOTALL,
)
_TASK = re.compile(r"(?:^|,)com\.docker\.swarm\.task\.id=([a-z0-9]+)")


@frozen
class Line:
    """One line of output.

    :ivar at: nanoseconds of POSIX time by its node's clock; 0: not known.
    :ivar task: whose it is; empty: not known.
    """

    text: str
    at: int = 0
    task: str = ""


def read_line(line: str) -> Line:
    """Take off what the engine has put in front."""
    found = _LINE.match(line)
    if found is None:
        return Line(line)
    task = _TASK.search(found["details"] or "")
    return Line(found["text"], nanoseconds(found["at"]), task[1] if task else "")


@define(eq=False)
class Frames:
    """Takes frames apart as their bytes come.

    :ivar whole: called with what was in them.
    :ivar raw: there are none, as the output is a terminal's.
    """

    whole: Callable[[bytes], None]
    raw: bool = False
    _rest: bytes = field(default=b"", init=False)

    def feed(self, data: bytes) -> None:
        """Take more bytes."""
        if self.raw:
            self.whole(data)
            return
        self._rest += data
        while len(self._rest) >= HEADER:
            end = HEADER + int.from_bytes(self._rest[4:HEADER], "big")
            if len(self._rest) < end:
                return
            # What is in one frame is whole lines of one task, so that those of others do not come in between.
            self.whole(self._rest[HEADER:end])
            self._rest = self._rest[end:]
