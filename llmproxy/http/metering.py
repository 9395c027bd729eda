"""What an answer tells of its own cost and of its own failure, read as it passes by.  Pure.

Engines tell how many tokens a request took in ``usage``: at the end of a JSON answer, in the last events of a
stream when the client asked for that (``stream_options.include_usage``; Anthropic's and the responses API
always).  A stream that does not tell is counted by its events, of which engines send one for each token.

Nothing here changes a byte, and what it costs is a search in the bytes of each piece: what is found is parsed
when the answer is over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

__all__ = ["NO_TOKENS", "DocumentMeter", "EventMeter", "Tokens"]

LARGEST_DOCUMENT = 64 * 1024
"""Bytes of a JSON answer that are kept.  Of a longer one it is the end: ``usage`` stands behind the text."""

LONGEST_USAGE = 2048
"""Bytes from the beginning of ``usage`` on; vLLM's longest, with its details, has some 300."""

# What is looked for is found in the bytes: to parse all of a JSON answer takes as long as to relay it.  The
# names are those of numbers; a text in which they stand has a backslash before each quotation mark.
_OPENED = re.compile(rb'"usage"\s*:\s*\{')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,15})(?![\d.eE])')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,15})(?![\d.eE])')


@frozen
class Tokens:
    """What a request took.

    :ivar prompt: tokens of its prompt; None: not told.
    :ivar completion: tokens of its answer; None: not told.
    :ivar estimated: the answer's were counted by its events.
    """

    prompt: int | None = None
    completion: int | None = None
    estimated: bool = False


NO_TOKENS = Tokens()
"""Of an answer that tells nothing."""


def _told(text: bytes) -> Tokens:
    """The last ``usage`` in a text, in the words of OpenAI's or of Anthropic's API."""
    end = len(text)
    while (at := text.rfind(b'"usage"', 0, end)) >= 0:
        opened = _OPENED.match(text, at)
        if opened is not None and text[at - 1 : at] != b"\\":
            prompt = _count(_PROMPT, text, opened.end(), end)
            completion = _count(_COMPLETION, text, opened.end(), end)
            if prompt is not None or completion is not None:
                return Tokens(prompt, completion)
        end = at
    return NO_TOKENS


def _count(name: re.Pattern[bytes], text: bytes, start: int, end: int) -> int | None:
    found = name.search(text, start, end)
    return None if found is None else int(found[1])


class DocumentMeter:
    """Of a JSON answer.

    :ivar events: 0: it has none.
    :ivar found: False: its status says whether it failed.
    """

    __slots__ = ("_pieces", "_size")

    events = 0
    found = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, pieces: Iterable[bytes]) -> None:
        """Look at the next bytes."""
        for piece in pieces:
            self._pieces.append(piece)
            self._size += len(piece)
        if self._size > LARGEST_DOCUMENT:
            self._pieces = [b"".join(self._pieces)[-LONGEST_USAGE:]]
            self._size = LONGEST_USAGE

    def tokens(self) -> Tokens:
        """What it tells, once it is over."""
        return _told(b"".join(self._pieces))


class EventMeter:
    """Of a stream of events.

    An ``error`` event is noticed, too: vLLM ends a broken stream with one, and then with ``[DONE]`` and a
    clean end of message.  It looks for the shapes that engines write at the start of a line, across any split
    of the bytes.

    :ivar found: there was an error event.
    :ivar events: how many have begun.
    """

    __slots__ = ("_first", "_follow", "_tail", "_usage", "events", "found")

    _MARKS = (b'\ndata: {"error"', b'\ndata:{"error"', b"\nevent: error")
    _EVENT = b"\ndata:"
    # To its end, which is an empty line: what breaks off before that no client has heard as an event.
    _DONE = re.compile(rb"\ndata: ?\[DONE\]\r?\n\r?\n[\r\n]*\Z")
    _LONGEST = max(map(len, (*_MARKS, b"\ndata: [DONE]\r\n\r\n\r\n")))
    _STARTS = (b'"usage":{', b'"usage": {')

    def __init__(self) -> None:
        self._tail = b"\n"
        self.found = False
        self.events = 0
        # Anthropic's first event tells of the prompt, and its last one need not.
        self._first = b""
        self._usage = b""
        self._follow = 0

    def feed(self, pieces: Iterable[bytes]) -> None:
        """Look at the next bytes of the stream."""
        for piece in pieces:
            # Most pieces hold none of the words; the search for them costs far less than anything else.
            tail = self._tail
            window = tail + piece
            if b"error" in window and any(mark in window for mark in self._MARKS):
                self.found = True
            self.events += window.count(self._EVENT) - tail.count(self._EVENT)
            if self._follow > 0:
                self._usage += piece[: self._follow]
                self._follow -= len(piece)
            if b'"usage"' in window:
                self._look(window, len(tail))
            self._tail = window[-self._LONGEST :]

    @property
    def settled(self) -> bool:
        """It has told how it ends, by ``[DONE]`` or an error event, to the end of that."""
        if self._DONE.search(self._tail):
            return True
        return self.found and self._tail.endswith((b"\n\n", b"\n\r\n"))

    def _look(self, window: bytes, seen: int) -> None:
        # Those that are null tell nothing, and come with every event of some engines.
        at = max(window.rfind(start) for start in self._STARTS)
        if at >= 0 and at + len(self._STARTS[1]) > seen:
            self._first = self._first or self._usage
            self._usage = window[at : at + LONGEST_USAGE]
            self._follow = LONGEST_USAGE - len(self._usage)

    def tokens(self) -> Tokens:
        """What it tells, once it is over."""
        told = _told(self._usage)
        if told.prompt is None:
            told = Tokens(_told(self._first).prompt, told.completion)
        if told.completion is not None or not self.events:
            return told
        return Tokens(told.prompt, self._estimate(), estimated=True)

    def _estimate(self) -> int:
        # ``[DONE]`` is no token, nor is the event in which OpenAI's chats tell the role.
        return max(1, self.events - 2) if self.events > 1 else 1
