"""What is remembered between runs: one JSON document in the state folder.

Each part of it is given by a callable; what is in a part is for others to know.  The proxy works the same
without it: what cannot be read starts afresh, and what cannot be written is told once.

It is written in the reactor's thread: :data:`LARGEST` bounds it to a few milliseconds of work, and it happens
at most once in :data:`GATHER` seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llmproxy.files import replace_file

__all__ = ["GATHER", "LARGEST", "NAME", "StateFile"]

NAME = "state.json"

GATHER = 5.0
"""Seconds in which changes are gathered to one write.  What a killed proxy forgets is as little."""

LARGEST = 512 * 1024
"""Bytes of the document.  A part that would make it larger is left out."""


@define(eq=False)
class StateFile:
    """Reads the document once and writes it after changes.

    :ivar folder: where it stands; made when it is first written.
    :ivar parts: by name, what gives each part as it is now, fit for JSON.  The first ones are the last to be
        left out when the whole is too large.
    """

    _clock: IReactorTime
    folder: str
    parts: Mapping[str, Callable[[], object]]
    gather: float = GATHER
    _due: IDelayedCall | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _held: bool = field(default=False, init=False)
    # What was told of, so that it is told once.
    _unwritten: bool = field(default=False, init=False)
    _left_out: set[str] = field(factory=set, init=False)
    _log = Logger()

    @property
    def path(self) -> str:
        """The document."""
        return os.path.join(self.folder, NAME)

    def read(self) -> dict[str, Any]:
        """The parts as they were last written, by name; what was not written is not there.

        A damaged document is put aside as ``state.json.damaged``.
        """
        try:
            with open(self.path, "rb") as file:
                written = file.read(2 * LARGEST)
        except FileNotFoundError:
            self._log.info("Nothing is remembered of an earlier run: there is no {path}", path=self.path)
            return {}
        except OSError as error:
            self._log.warn("Cannot read {path}, and starts afresh: {error}", path=self.path, error=error)
            return {}
        try:
            document = msgspec.json.decode(written)
            if isinstance(document, dict):
                return document
            reason = "no JSON object"
        except (ValueError, RecursionError) as error:  # what msgspec raises is a ValueError
            reason = str(error)
        with suppress(OSError):
            os.replace(self.path, self.path + ".damaged")
        self._log.warn(
            "{path} is damaged, and is kept as {path}.damaged; what it remembered is lost: {reason}",
            path=self.path,
            reason=reason,
        )
        return {}

    def changed(self) -> None:
        """Some part is not what it was: write it within :ivar:`gather` seconds."""
        if self._due is None and not self._closed and not self._held:
            self._due = self._clock.callLater(self.gather, self._write)

    def hold(self, *, on: bool) -> None:
        """Write nothing while another process does; what has changed meanwhile is written afterwards."""
        self._held = on
        if on and self._due is not None:
            self._due.cancel()
            self._due = None
        elif not on:
            self.changed()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._due is not None:
            self._due.cancel()
            self._write()

    def close(self) -> None:
        """Write what is not written yet, and nothing afterwards."""
        self._closed = True
        self.flush()

    def _write(self) -> None:
        self._due = None
        document = self._encoded()
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            replace_file(self.folder, NAME, document)
        except OSError as error:
            if not self._unwritten:
                self._log.warn(
                    "Cannot write {path}; nothing will be remembered after this run: {error}",
                    path=self.path,
                    error=error,
                )
            self._unwritten = True
        else:
            self._unwritten = False

    def _encoded(self) -> bytes:
        document: dict[str, msgspec.Raw] = {}
        room = LARGEST
        for name, part in self.parts.items():
            try:
                encoded = msgspec.json.encode(part())
            except Exception:  # a fault in one part may cost neither the others nor an ordered end
                self._log.failure("Cannot remember {name}", name=name)
                continue
            length = len(msgspec.json.encode({name: msgspec.Raw(encoded)}))
            if length <= room:
                room -= length
                document[name] = msgspec.Raw(encoded)
            elif name not in self._left_out:
                self._left_out.add(name)
                self._log.warn("Too large to be remembered: {name}, {length} bytes", name=name, length=length)
        return msgspec.json.encode(document)
