"""Heads that are known already: what llhttp has read once is not read again.  Pure.

A client that keeps its connection sends the same head with request after request, and a server the same
with answer after answer, but for the length of the body and the time.  So the bytes of a head that the parser
has taken are kept, and the next message on that connection is held against them: where it is the same, byte
for byte, but for the digits of ``Content-Length`` and a well-formed time in ``Date``, the parser would find
what it found before.  Everything else is for the parser, which decides alone what a message is.

Only heads that were seen on the same connection are compared, so that the time which a comparison takes tells
nothing of another client's key.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from llmproxy.http.headers import Fields

__all__ = ["KnownHead", "Likeness"]

MOST_DIGITS = 11
"""Of a body's length; a longer number is for the parser."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,%d})[ \t]*(?=\r\n)" % MOST_DIGITS, re.IGNORECASE)

_TIME = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
"""``IMF-fixdate`` of RFC 9110 section 5.6.7, which is always of one length."""
_DATE = re.compile(rb"\r\ndate:[ \t]*(" + _TIME + rb")[ \t]*(?=\r\n)", re.IGNORECASE)
_IS_TIME = re.compile(_TIME)
_TIME_SIZE = 29


class Likeness(NamedTuple):
    """What is known of a message whose head is like one before.

    :ivar size: bytes of the head, the empty line included.
    :ivar length: bytes of the body behind it.
    """

    size: int
    length: int
    fields: Fields


class KnownHead:
    """A head whose meaning is known.  See :meth:`learn`."""

    __slots__ = ("_fields", "_holes", "_tail", "_told_length", "_values")

    def __init__(
        self,
        holes: tuple[tuple[bytes, bool], ...],
        tail: bytes,
        values: list[bytes],
        fields: Fields,
    ) -> None:
        # What stands before each hole, and whether a time stands in it rather than a length.
        self._holes = holes
        self._tail = tail
        self._values = values
        self._fields = fields
        self._told_length = b"content-length" in fields

    @classmethod
    def learn(cls, head: bytes, fields: Fields) -> KnownHead | None:
        """Take a head that was read.

        :param head: from its first byte to the empty line, with it.
        :param fields: what the parser found in it; ``Content-Length`` may be left out.
        :return: None when another one like it cannot be told by its bytes.
        """
        lengths = list(_LENGTH.finditer(head))
        if len(lengths) != 1 or len(fields) != len(fields.raw) or b"transfer-encoding" in fields:
            return None
        found = [(lengths[0].span(1), False)]
        date = _DATE.search(head) if b"date" in fields else None
        if date is not None:
            found.append((date.span(1), True))
        holes, values, at = [], [], 0
        for (first, last), timed in sorted(found):
            holes.append((head[at:first], timed))
            values.append(head[first:last])
            at = last
        return cls(tuple(holes), head[at:], values, fields)

    def match(self, data: bytes) -> Likeness | None:
        """Hold the beginning of ``data`` against it; None where it is not like it."""
        at, length, values = 0, 0, []
        for literal, timed in self._holes:
            if not data.startswith(literal, at):
                return None
            at += len(literal)
            end = at + _TIME_SIZE if timed else data.find(b"\r", at, at + MOST_DIGITS + 1)
            value = data[at:end]
            if timed:
                if value not in self._values and not _IS_TIME.fullmatch(value):
                    return None
            elif end < 0 or not value.isdigit():
                return None
            else:
                length = int(value)
            values.append(value)
            at = end
        if not data.startswith(self._tail, at):
            return None
        if values != self._values:
            self._change(values)
        return Likeness(at + len(self._tail), length, self._fields)

    def _change(self, values: list[bytes]) -> None:
        self._values = values
        changes = {
            b"date" if timed else b"content-length": value
            for (_, timed), value in zip(self._holes, values, strict=True)
            if timed or self._told_length
        }
        if changes:
            self._fields = self._fields.changed(changes)
