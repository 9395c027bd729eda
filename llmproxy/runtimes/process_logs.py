"""The output of child processes: files that outlive the proxy, and stay small."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llmproxy.runtimes.lines import Lines
from llmproxy.runtimes.spare import SPARE

__all__ = ["LARGEST", "LogFile"]

LARGEST = 1024 * 1024
"""Bytes of a log past which only its newer half is kept."""
TRIM_EVERY = 5.0
"""Seconds between looks at the size of a log while its process runs."""
FOLLOW_EVERY = 0.1
"""Seconds between looks for new lines: soon enough for a person."""


@define(eq=False)
class _Follower:
    lines: Lines
    position: int
    ended: Deferred[None]


@define(eq=False)
class LogFile:
    """The log of one route: of its present or last run; the run before stands in ``<path>.1``."""

    _reactor: IReactorTime
    path: str
    _followers: list[_Follower] = field(factory=list, init=False)
    _follow_timer: IDelayedCall | None = field(default=None, init=False)
    _trim_timer: IDelayedCall | None = field(default=None, init=False)

    def open_new(self) -> int:
        """Begin the log of a new run; a file descriptor for the child, to be closed here after the spawn."""
        with suppress(FileNotFoundError):
            os.replace(self.path, self.path + ".1")
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def begin(self) -> None:
        """A process writes to it now: keep it small."""
        self._trim()
        self._stop_timer(self._trim_timer)
        self._trim_timer = self._reactor.callLater(TRIM_EVERY, self.begin)

    def end(self) -> None:
        """The run is over: pass on the last lines."""
        self._stop_timer(self._trim_timer)
        self._read_on()
        self._stop_timer(self._follow_timer)
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.lines.feed(b"", last=True)
            if not follower.ended.called:
                follower.ended.callback(None)

    def close(self) -> None:
        """Let go; followers are cancelled."""
        self._stop_timer(self._trim_timer)
        self._stop_timer(self._follow_timer)
        for follower in list(self._followers):
            follower.ended.cancel()

    def tail(self, count: int) -> str:
        """The last lines.

        :raises OSError: they cannot be read.
        """
        return "\n".join(self._tail(count)[0])

    def follow(self, count: int, line: Callable[[str], None]) -> Deferred[None]:
        """Pass on the last lines, and all that come until :meth:`end`.

        :raises OSError: they cannot be read.
        """
        lines, position = self._tail(count, whole=True)
        for each in lines:
            line(each)
        ended: Deferred[None] = Deferred(lambda _: self._followers.remove(follower))
        follower = _Follower(Lines(line), position, ended)
        self._followers.append(follower)
        self._follow_on()
        return ended

    def _tail(self, count: int, *, whole: bool = False) -> tuple[list[str], int]:
        """The last lines and where they end; ``whole``: not the beginning of one that is being written."""

        def read() -> bytes:
            with open(self.path, "rb") as file:
                return file.read()

        try:
            data = SPARE.use(read)
        except FileNotFoundError:
            return [], 0
        if whole:
            data = data[: data.rfind(b"\n") + 1]
        found: list[str] = []
        Lines(found.append).feed(data, last=True)
        return (found[-count:] if count > 0 else []), len(data)

    def _follow_on(self) -> None:
        self._read_on()
        self._stop_timer(self._follow_timer)
        if self._followers:
            self._follow_timer = self._reactor.callLater(FOLLOW_EVERY, self._follow_on)

    def _read_on(self) -> None:
        followers = list(self._followers)
        if not followers:
            return

        def read() -> list[bytes]:
            found: list[bytes] = []
            with open(self.path, "rb") as file:
                for follower in followers:
                    file.seek(follower.position)
                    found.append(file.read())
            return found

        with suppress(OSError):  # looked at again in a moment
            for follower, data in zip(followers, SPARE.use(read), strict=True):
                follower.position += len(data)
                follower.lines.feed(data)

    def _trim(self) -> None:
        with suppress(OSError):  # looked at again in a moment
            size = os.path.getsize(self.path)
            if size > LARGEST:
                self._read_on()
                end = SPARE.use(lambda: self._cut(size - LARGEST // 2))
                for follower in self._followers:
                    follower.position = end

    def _cut(self, begin: int) -> int:
        """Copy what comes from there on over the whole, in place: the child's descriptor points to this very
        file, and appends wherever its end is.

        :return: where it ends now.
        """
        # Opened once: what is cut off and cannot be written again for want of a descriptor would be lost.
        with open(self.path, "ab+") as file:
            file.seek(begin)
            kept = file.read()
            file.truncate(0)
            file.write(kept[kept.find(b"\n") + 1 :])
            file.flush()
            return file.tell()

    @staticmethod
    def _stop_timer(timer: IDelayedCall | None) -> None:
        if timer is not None and timer.active():
            timer.cancel()
