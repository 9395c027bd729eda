"""``multipart/form-data`` (RFC 7578) as far as a proxy needs it: the fields ``model`` and ``stream``.  Pure.

It is read as python-multipart and Starlette read it, which stand in vLLM: a delimiter begins a line and has
a line's end or ``--`` behind it; what has a filename, be it empty, is a file; of several fields with one name
the last counts.  What their versions take differently is refused, so that nothing is routed by one model's
name and served by another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from llmproxy.errors import Refusal, invalid_request

__all__ = ["form_streams", "is_form", "multipart_model", "with_model"]

LONGEST_HEAD = 8 * 1024
"""Bytes of one part's head."""

LONGEST_NAME = 1024
"""Bytes of a model's name."""

MOST_PARTS = 2000
"""As many as Starlette takes: 1,000 files and 1,000 other fields."""


# What pydantic takes for true, in whatever case.
_TRUE = frozenset((b"1", b"on", b"t", b"true", b"y", b"yes"))

_PARAMETER = re.compile(r';[ \t]*([^=; \t"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"(?=[ \t]*(?:;|$))|[^;]*)')


class _Span(NamedTuple):
    """Where a part's content stands."""

    start: int
    end: int


def is_form(content_type: str) -> bool:
    """The body is ``multipart/form-data``."""
    return content_type[:19].lower() == "multipart/form-data"


def multipart_model(content_type: str, body: bytes) -> str | None:
    """The ``model`` field of a form; None when there is none, or it is empty.

    :raises llmproxy.errors.Refusal: ``invalid_request``: it is no form, or the field is no model's name.
    """
    span = None
    for span in _fields(content_type, body, "model"):
        if span.end - span.start > LONGEST_NAME:
            raise invalid_request(f"'model' is longer than {LONGEST_NAME} bytes.", param="model")
    if span is None or span.start == span.end:
        return None
    try:
        return body[span.start : span.end].decode()
    except UnicodeDecodeError:
        raise invalid_request("'model' is not UTF-8.", param="model") from None


def with_model(content_type: str, body: bytes, model: str) -> bytes | None:
    """The form with another model's name in it, everything else byte for byte; None when it names that one
    already, or none."""
    name = model.encode()
    pieces: list[bytes] = []
    at = 0
    changed = False
    for span in _fields(content_type, body, "model"):
        changed = changed or body[span.start : span.end] != name
        pieces += (body[at : span.start], name)
        at = span.end
    return b"".join((*pieces, body[at:])) if changed else None


def form_streams(content_type: str, body: bytes) -> bool:
    """Whether a form asks for its answer as a stream of events."""
    value = b""
    try:
        for span in _fields(content_type, body, "stream"):
            value = body[span.start : min(span.end, span.start + 8)]
    except Refusal:
        # What it is instead is for the backend to say.
        return False
    return value.lower() in _TRUE


def _fields(content_type: str, body: bytes, wanted: str) -> Iterator[_Span]:
    """The places of all fields of one name."""
    for head, span in _parts(content_type, body):
        disposition = None
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-disposition":
                disposition = value.strip().decode("latin-1")
        options = {} if disposition is None else _options(disposition)
        if "name*" in options:
            # RFC 7578 section 4.2 forbids it; some take it for a name, and some do not.
            raise invalid_request("A part of the form has its name in the form of RFC 2231.")
        if options.get("name") == wanted and not options.keys() & {"filename", "filename*"}:
            yield span


def _parts(content_type: str, body: bytes) -> Iterator[tuple[bytes, _Span]]:
    """Head and place of every part that is complete."""
    boundary = _options(content_type).get("boundary")
    if not boundary:
        raise invalid_request("The multipart request names no boundary.")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    size = len(delimiter)
    # Nothing but empty lines may stand before the first.
    begin = len(body) - len(body.lstrip(b"\r\n"))
    if not body.startswith(delimiter[2:], begin):
        raise invalid_request("The form does not begin with its boundary.")
    at = begin + size - 2
    for _ in range(MOST_PARTS):
        if not body.startswith(b"\r\n", at):
            return
        end_of_head = body.find(b"\r\n\r\n", at, at + LONGEST_HEAD + 4)
        if end_of_head < 0:
            if len(body) - at > LONGEST_HEAD:
                raise invalid_request(f"A part of the form has a head longer than {LONGEST_HEAD} bytes.")
            return
        start = end_of_head + 4
        following = _behind(body, delimiter, start)
        if following < 0:
            return
        yield body[at + 2 : end_of_head], _Span(start, following - size)
        at = following
    raise invalid_request(f"The form has more than {MOST_PARTS} parts.")


def _behind(body: bytes, delimiter: bytes, at: int) -> int:
    """The place behind the next delimiter; -1: there is none."""
    while (found := body.find(delimiter, at)) >= 0:
        end = found + len(delimiter)
        behind = body[end : end + 2]
        if behind in (b"\r\n", b"--"):
            return end
        if behind[:1] in (b" ", b"\t"):
            raise invalid_request("The form has white space behind one of its boundaries.")
        at = found + 1
    return -1


def _options(value: str) -> dict[str, str]:
    """The parameters of a header field's value."""
    found = {}
    for match in _PARAMETER.finditer(value):
        name, text = match[1].lower(), match[2].rstrip(" \t")
        if len(text) >= 2 and text[0] == text[-1] == '"':
            text = text[1:-1].replace("\\\\", "\\").replace('\\"', '"')
        found[name] = text
    return found
