"""What the proxy's log tells of starts, and when it does: the proxy's own clock is stepped."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from attrs import define, field, frozen

__all__ = ["Start", "Story"]

EVERY = 0.05
"""Seconds between looks."""

LATE = 0.5
"""Seconds by which a line may be read later than a client has heard of it."""

_MOVED = re.compile(r"#info\] (\w+): \w+ -> (starting|failed)\b")


@frozen
class Start:
    """A start that has failed; monotonic times."""

    route: str
    began: float
    failed: float


@define(eq=False)
class Story(threading.Thread):
    """Follows the log.

    :ivar failed: all starts that have failed, in their order.
    """

    file: Path
    over: threading.Event
    clock: Callable[[], float] = time.monotonic
    failed: list[Start] = field(factory=list, init=False)
    _began: dict[str, float] = field(factory=dict, init=False)
    _at: int = field(default=0, init=False)
    _part: str = field(default="", init=False)

    def __attrs_pre_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        """Until it is over."""
        while not self.over.wait(EVERY):
            self.look()

    def look(self) -> None:
        """Read on."""
        with self.file.open("rb") as log:
            log.seek(self._at)
            data = log.read()
        self._at += len(data)
        *lines, self._part = (self._part + data.decode("utf-8", "replace")).split("\n")
        now = self.clock()
        for line in lines:
            found = _MOVED.search(line)
            if found is None:
                continue
            route, state = found.groups()
            if state == "starting":
                self._began[route] = now
            else:
                self.failed.append(Start(route, self._began.get(route, now), now))

    def last_failed(self, route: str, at: float) -> Start | None:
        """The start of that route that had failed last by then."""
        known = [each for each in self.failed if each.route == route and each.failed <= at + LATE]
        return known[-1] if known else None
