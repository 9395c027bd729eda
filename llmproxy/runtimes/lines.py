"""Cuts output into lines.  Pure."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from attrs import define, field

__all__ = ["LONGEST_LINE", "Lines"]

LONGEST_LINE = 64 * 1024
"""Characters after which a line is broken: a progress bar that never ends one must not fill our memory."""


@define(eq=False)
class Lines:
    """Cuts a stream of bytes into lines; a terminal's ``\\r\\n`` counts as one end."""

    line: Callable[[str], None]
    _decoder: codecs.IncrementalDecoder = field(
        factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace"), init=False
    )
    _rest: str = field(default="", init=False)

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Take more bytes; ``last`` ends an unfinished line."""
        *whole, self._rest = (self._rest + self._decoder.decode(data, last)).split("\n")
        for line in whole:
            self.line(line.rstrip("\r"))
        while len(self._rest) > LONGEST_LINE:
            self.line(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]
        if last and self._rest:
            self.line(self._rest.rstrip("\r"))
            self._rest = ""
