"""Samples what runs: the processes of the proxy, and those of its backends, wherever they are."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import define, field, frozen

__all__ = ["Seen", "Watch", "look"]

EVERY = 0.1

LEAST = 3.0
"""Looks in a second without which too little was seen; a busy machine has fewer than it is asked for."""


@frozen
class Seen:
    """What ran at a moment: process ids."""

    at: float
    proxies: Sequence[int]
    backends: Mapping[str, Sequence[int]]


def look(token: str, config: str) -> Seen:
    """Look at all processes.

    :param token: a word that each backend of ours has in its command line, behind ``--chaos``.
    :param config: the proxy's file.
    """
    proxies: list[tuple[int, int]] = []
    backends: dict[str, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            proxy = config in words and "llmproxy" in words
            backend = f"--chaos={token}" in words and words[1:3] == ["-m", "llmproxy.demo"]
            if not (proxy or backend):
                continue
            stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if stat[0] in "ZX":
            continue
        if proxy:
            proxies.append((int(stat[19]), int(entry)))
        else:
            route = words[words.index("--model") + 1].removesuffix("-model")
            backends[route].append(int(entry))
    return Seen(time.monotonic(), [pid for _, pid in sorted(proxies)], dict(backends))


@define(eq=False)
class Watch(threading.Thread):
    """Looks again and again.

    :ivar shares: of the GPU, by route, of those that hold it for as long as they run.
    :ivar wrong: what must never be.
    :ivar last: what was seen last.
    """

    look: Callable[[], Seen]
    shares: Mapping[str, float]
    over: threading.Event
    wrong: list[str] = field(factory=list)
    last: Seen = field(init=False)
    samples: int = field(init=False, default=0)
    began: float = field(init=False, default=0.0)
    _before: dict[str, set[int]] = field(init=False, factory=dict)

    def __attrs_pre_init__(self) -> None:
        super().__init__(daemon=True)

    def __attrs_post_init__(self) -> None:
        self.last = self.look()

    def run(self) -> None:
        """Until it is over."""
        self.began = time.monotonic()
        while not self.over.wait(EVERY):
            self._look()

    def lacks(self) -> list[str]:
        """What it has not seen, while it is not over: nobody else looks whether one ran twice."""
        seconds = time.monotonic() - self.began
        if not self.is_alive():
            return [f"nobody looked at what runs any more: that ended after {self.samples} looks"]
        if self.samples < LEAST * seconds:
            return [f"what runs was looked at {self.samples} times only in {seconds:.0f} s"]
        return []

    def _look(self) -> None:
        self.last = seen = self.look()
        self.samples += 1
        # Twice in a row: one that has been killed is there a moment longer.
        both = {route: set(pids) & self._before.get(route, set()) for route, pids in seen.backends.items()}
        for route, twice in both.items():
            if len(twice) > 1:
                self._tell(f"{route} ran {len(twice)} times at once: {sorted(twice)}")
        held = sorted(route for route, twice in both.items() if twice and route in self.shares)
        if sum(self.shares[route] for route in held) > 1:
            self._tell(f"more ran at once than the GPU has room for: {', '.join(held)}")
        self._before = {route: set(pids) for route, pids in seen.backends.items()}

    def _tell(self, what: str) -> None:
        if what not in self.wrong:
            self.wrong.append(what)
