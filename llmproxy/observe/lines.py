"""From an event of Twisted's log to what is written: a line to read, or JSON objects, one a line.  Pure.

Nothing that came from outside can begin a line, end one, or reach a terminal as a control sequence: text has
control characters as ``\\x1b``, with a tab in front of what is a further line of the same event, and JSON has
them in its own escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol

import msgspec
from twisted.logger import LogEvent, LogLevel, formatEvent, formatEventAsClassicLogText, formatTime
from twisted.python.failure import Failure

from llmproxy.engines.redaction import redact

__all__ = ["Entry", "json_lines", "text_lines"]

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters but tab and newline, what Unicode has for ends of lines, and halves of characters."""

_PLAIN = bytes((9, 10, *range(32, 127)))
"""What is harmless anywhere."""

_LEGACY = frozenset(("time", "isError", "system", "message", "format", "why", "failure", "printed", "level"))
"""Keys of Twisted's older log, which say again what the newer ones say."""

_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


class _Tokens(Protocol):
    @property
    def prompt(self) -> int | None: ...

    @property
    def completion(self) -> int | None: ...

    @property
    def estimated(self) -> bool: ...


class Entry(Protocol):
    """What is read of a request that is over; :class:`llmproxy.web.accesslog.Entry` is one."""

    at: float
    request_id: str
    trace_id: str
    key: str
    client: str
    method: str
    path: str
    route: str
    state: str
    held: float
    status: int
    outcome: str
    error: str
    received: int
    sent: int
    first_byte: float | None
    seconds: float

    @property
    def tokens(self) -> _Tokens:
        """What it took."""


def text_lines(event: LogEvent, secrets: Sequence[str] = ()) -> str | None:
    """As Twisted writes it: ``2026-11-26T16:42:56+0000 [namespace#level] ...``; None when it says nothing.

    :param secrets: that are not to be shown; the access log's entries come without any.
    """
    text = formatEventAsClassicLogText(event, formatTime=formatTime)
    if text is not None and "entries" not in event:
        text = redact(text, secrets)
    if text is None or _harmless(text):
        return text
    return _UNSAFE.sub(_escaped, text)


def json_lines(event: LogEvent, secrets: Sequence[str] = ()) -> str | None:
    """One JSON object, or one for each request of an event of the access log; None when it says nothing.

    :param secrets: that are not to be shown; the access log's entries come without any.
    """
    entries: Sequence[Entry] | None = event.get("entries")
    if entries is not None:
        return _requests(event, entries)
    message = formatEvent(event)
    failure = event.get("log_failure")
    if not message and failure is None:
        return None
    line: dict[str, Any] = {
        "time": _time(event.get("log_time") or 0.0),
        "level": _level(event),
        "logger": event.get("log_namespace") or "-",
        "message": message,
    }
    for name, value in event.items():
        if name not in line and name not in _LEGACY and not name.startswith("log_"):
            line[name] = _plain(value)
    if isinstance(failure, Failure):
        line["exception"] = failure.type.__name__ if failure.type is not None else "Failure"
        line["traceback"] = _traceback(failure)
    line = {name: _hidden(value, secrets) for name, value in line.items()}
    # All but ASCII is escaped; of control characters JSON leaves this one alone.
    return json.dumps(line, separators=(",", ":")).replace("\x7f", "\\u007f") + "\n"


def _requests(event: LogEvent, entries: Sequence[Entry]) -> str:
    logger = event.get("log_namespace") or "-"
    lines = [_encode(_request(logger, entry)) for entry in entries]
    text = b"\n".join(lines).decode("utf-8") + "\n"
    return text if _harmless(text) else _UNSAFE.sub(_json_escaped, text)


def _request(logger: str, entry: Entry) -> dict[str, Any]:
    path, first_byte, tokens, at = entry.path, entry.first_byte, entry.tokens, entry.at
    whole = int(at)
    return {
        "time": f"{_second(whole)}.{int((at - whole) * 1000):03d}Z",
        "level": "info",
        "logger": logger,
        "message": f"{entry.method} {path} {entry.status}",
        "request_id": entry.request_id,
        "trace_id": entry.trace_id or None,
        "key": _named(entry.key),
        "client": entry.client,
        "method": entry.method,
        "path": path,
        "backend": _named(entry.route),
        "state": _named(entry.state),
        "status": entry.status,
        "outcome": entry.outcome,
        "error": entry.error or None,
        "held": round(entry.held, 6) if entry.held else 0.0,
        "first_byte": None if first_byte is None else round(first_byte, 6),
        "seconds": round(entry.seconds, 6),
        "received": entry.received,
        "sent": entry.sent,
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "tokens_estimated": tokens.estimated,
    }


def _harmless(text: str) -> bool:
    """Whether nothing but plain ASCII is there, as nearly always; a tenth of what the search would take."""
    return not text.encode("utf-8", "replace").translate(None, _PLAIN)


def _named(name: str) -> str | None:
    """The access log's ``-`` is nobody."""
    return None if name == "-" else name


def _time(seconds: float) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(whole: int) -> str:
    # Requests come many in a second.
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _level(event: LogEvent) -> str:
    level = event.get("log_level", LogLevel.info)
    return str(getattr(level, "name", "info"))


def _plain(value: object) -> object:
    """What JSON can say of a field."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # NaN and the infinities are no JSON.
        return value if value - value == 0.0 else str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Failure):
        return value.getErrorMessage()
    return str(value)


def _hidden(value: object, secrets: Sequence[str]) -> object:
    # Before it is JSON: there a quote is written in another way.
    if isinstance(value, str):
        return redact(value, secrets)
    return [_hidden(one, secrets) for one in value] if isinstance(value, list) else value


def _traceback(failure: Failure) -> str:
    try:
        return str(failure.getTraceback())
    except Exception:
        # An exception that cannot be shown must not lose the event that tells of it.
        return "(it cannot be shown)"


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _json_escaped(found: re.Match[str]) -> str:
    # The newline between two objects is none of these, and whatever else there is stands in a string.
    return f"\\u{ord(found[0]):04x}"
