"""An answer on its way to a client that asked for the model by another name than the engine's.  Pure.

Only the ``model`` that says whose answer it is gets another value: that of the document, of the ``response``
in events of OpenAI's responses API, of the ``message`` in those of Anthropic's.  All else is passed on byte
for byte, and so is a document that has no such member or is not strictly JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

__all__ = ["LONGEST_EVENT", "EventRenamer", "renamed"]

LONGEST_EVENT = 1024 * 1024
"""Bytes of one line of a stream that are looked into; the ``model`` of a longer one stays as it is."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])

_WITHIN = ("response", "message")


def renamed(document: bytes, served: str, asked: str) -> bytes | None:
    """A JSON document with the name that the client knows.

    :param served: the name that the engine writes.
    :param asked: the name by which the client asked for it.
    :return: None when nothing has to be changed.
    """
    if b"model" not in document:
        return None
    try:
        if not document.isascii():
            document.decode()
        members: dict[str, Any] = dict(_members.decode(document))
        changed = _rename(members, served, asked)
        for name in _WITHIN:
            if (member := members.get(name)) is not None and bytes(member).startswith(b"{"):
                inner: dict[str, Any] = dict(_members.decode(bytes(member)))
                if _rename(inner, served, asked):
                    members[name] = inner
                    changed = True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return msgspec.json.encode(members) if changed else None


def _rename(members: dict[str, Any], served: str, asked: str) -> bool:
    member = members.get("model")
    if member is None or not bytes(member).startswith(b'"') or msgspec.json.decode(member) != served:
        return False
    members["model"] = asked
    return True


class EventRenamer:
    """Puts the name into a stream of events (HTML standard, section 9.2), line by line as they come."""

    def __init__(self, served: str, asked: str) -> None:
        self._names = served, asked
        self._begun: list[bytes] = []
        self._size = 0
        # Within a line that is too long to be kept.
        self._passing = False

    def feed(self, pieces: Iterable[bytes]) -> list[bytes]:
        """The bytes that may leave now that these have come."""
        out: list[bytes] = []
        for piece in pieces:
            end = max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1
            if end:
                lines = piece[:end].splitlines(keepends=True)
                if self._begun:
                    lines[0] = b"".join((*self._begun, lines[0]))
                    self._begun = []
                    self._size = 0
                first = 1 if self._passing else 0
                self._passing = False
                out.append(b"".join((*lines[:first], *map(self._line, lines[first:]))))
            rest = piece[end:]
            if not rest:
                continue
            if self._passing:
                out.append(rest)
                continue
            self._begun.append(rest)
            self._size += len(rest)
            if self._size > LONGEST_EVENT:
                self._passing = True
                out += self.end()
        return out

    def end(self) -> list[bytes]:
        """What is left of a line that did not come to its end."""
        begun, self._begun = self._begun, []
        self._size = 0
        return begun

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or b"model" not in line:
            return line
        text = line[5:].rstrip(b"\r\n")
        found = renamed(text, *self._names)
        if found is None:
            return line
        space = b" " if text.startswith(b" ") else b""
        return b"data:" + space + found + line[5 + len(text) :]
