"""What happened to the backends, for :mod:`llmproxy.scheduling.advice`.  Pure; times are POSIX seconds."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal, cast

from attrs import define, evolve, field, frozen

__all__ = ["MERGE", "MOST", "OLDEST", "Entry", "History", "Kind"]

Kind = Literal["used", "started", "woken", "reaped", "evicted"]

MOST = 5000
"""Entries that are kept: weeks of a house with a handful of models; 600 KiB of memory, 230 KiB in a file."""

OLDEST = 30 * 86400.0
"""Seconds: what people did a month ago says little about what they will do tomorrow."""

MERGE = 30.0
"""Seconds between two uses that make them one: no idle time is as short, and a model in steady use would
fill the history with its requests."""

LONGEST_NAME = 256
"""Characters of a backend's name or a reason in what is loaded."""

_KINDS: tuple[Kind, ...] = ("used", "started", "woken", "reaped", "evicted")
_LATEST = 2.0**40
_AHEAD = 86400.0
"""Seconds: what lies further ahead of now was written while the clock was wrong."""


@frozen
class Entry:
    """One thing that happened.

    :ivar at: when; of a use, when it began.
    :ivar by: why, or for whom it was evicted.
    :ivar until: the end of a use; otherwise the same as ``at``.
    """

    at: float
    backend: str
    kind: Kind
    by: str = ""
    until: float = field()

    @until.default
    def _(self) -> float:
        return self.at


@define
class History:
    """The last entries.

    :ivar most: entries that are kept at most.
    :ivar oldest: seconds after which an entry is forgotten.
    """

    most: int = MOST
    oldest: float = OLDEST
    _entries: deque[Entry] = field(factory=deque, init=False)
    # The last use of each backend, while it may go on.
    _uses: dict[str, Entry] = field(factory=dict, init=False)
    # Tells that the clock was set back.
    _newest: float = field(default=0.0, init=False)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them, in the order of their times; never changed afterwards (fit for another thread)."""
        return tuple(sorted((*self._entries, *self._uses.values()), key=lambda entry: entry.at))

    def used(self, backend: str, start: float, end: float) -> None:
        """Requests were in flight there without a pause.  Goes on with the last use if that has just been."""
        before = self._uses.pop(backend, None)
        start, end = round(start, 1), round(max(start, end), 1)
        if before is not None:
            if before.at <= start <= before.until + MERGE:
                self._uses[backend] = evolve(before, until=max(before.until, end))
                self._forget(end)
                return
            self._entries.append(before)
        self._uses[backend] = Entry(start, backend, "used", until=end)
        self._forget(end)

    def started(self, backend: str, at: float, by: str = "") -> None:
        """It was started."""
        self._happened(Entry(round(at, 1), backend, "started", by))

    def woken(self, backend: str, at: float, by: str = "") -> None:
        """It was woken."""
        self._happened(Entry(round(at, 1), backend, "woken", by))

    def reaped(self, backend: str, at: float, by: str = "") -> None:
        """It was stopped or put to sleep because nobody used it."""
        self._happened(Entry(round(at, 1), backend, "reaped", by))

    def evicted(self, backend: str, at: float, by: str) -> None:
        """It had to leave for another backend."""
        self._happened(Entry(round(at, 1), backend, "evicted", by))

    def dump(self) -> dict[str, Any]:
        """All of it, fit for JSON."""
        return {
            "version": 1,
            "entries": [
                [entry.kind, entry.backend, entry.at, entry.until if entry.kind == "used" else entry.by]
                for entry in self.entries
            ],
        }

    def load(self, dumped: object) -> None:
        """Take what :meth:`dump` gave in place of what is known.  What is damaged is left out; of another
        version, or nothing like it, nothing is taken."""
        self._entries.clear()
        self._uses.clear()
        if not isinstance(dumped, dict) or dumped.get("version") != 1:
            return
        written = dumped.get("entries")
        for item in written if isinstance(written, list) else ():
            entry = _read(item)
            if entry is not None:
                self._entries.append(entry)
                self._newest = max(self._newest, entry.until)
        while len(self._entries) > self.most:
            self._entries.popleft()

    def _happened(self, entry: Entry) -> None:
        before = self._uses.pop(entry.backend, None)
        if before is not None:
            self._entries.append(before)
        self._entries.append(entry)
        self._forget(entry.at)

    def _forget(self, now: float) -> None:
        while len(self._entries) + len(self._uses) > self.most:
            if self._entries:
                self._entries.popleft()
            else:
                del self._uses[next(iter(self._uses))]
        while self._entries and self._entries[0].until < now - self.oldest:
            self._entries.popleft()
        ahead = now + _AHEAD if self._newest > now + _AHEAD else None
        if ahead is not None:
            self._entries = deque(entry for entry in self._entries if entry.until <= ahead)
        self._newest = now if ahead is not None else max(self._newest, now)
        for use in list(self._uses.values()):
            if use.until < now - self.oldest or (ahead is not None and use.until > ahead):
                del self._uses[use.backend]


def _read(item: object) -> Entry | None:
    if not isinstance(item, list) or len(item) != 4:
        return None
    kind, backend, at, rest = item
    if kind not in _KINDS or not _is_name(backend) or not _is_time(at):
        return None
    if kind == "used":
        return Entry(at, backend, "used", until=rest) if _is_time(rest) and at <= rest else None
    return Entry(at, backend, cast("Kind", kind), rest) if _is_name(rest) else None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LATEST
