"""What became of a request.  Pure.

``right``: whole, and byte for byte what it has to be.  ``refused``: an error that says so, in its place and
whole.  ``cut``: it ended early, and shows that; an event stream says it, too, or is ``cut silent``.
``unreachable``: no byte of an answer came.  ``left``: its client hung up.  ``late``: not over within its
limits.  ``wrong``: anything else, which nothing excuses.
"""

from __future__ import annotations

import json

from attrs import evolve, field, frozen

from tests.integration.chaos.expected import DIED, Asked
from tests.integration.chaos.wire import Reading

__all__ = ["CODES", "Verdict", "judge"]

CODES = {
    "backend_start_failed": 503,
    "backend_start_timeout": 503,
    "backend_unavailable": 502,
    "backend_died": 502,
    "runtime_unavailable": 503,
    "shutting_down": 503,
    "hold_timeout": 504,
    "not_running": 503,
    "queue_full": 429,
}
"""The refusals of the contract that a fault may bring about, with their status."""

_ERROR = b'data: {"error"'


@frozen
class Verdict:
    """See the module.

    :ivar code: of a refusal; what exactly is wrong otherwise.
    :ivar body: all that came of one that is wrong.
    """

    word: str
    code: str = ""
    body: bytes = field(default=b"", repr=False)


def judge(asked: Asked, read: Reading) -> Verdict:
    """What that answer is worth."""
    verdict = _judge(asked, read)
    return evolve(verdict, body=read.body) if verdict.word == "wrong" else verdict


def _judge(asked: Asked, read: Reading) -> Verdict:
    if read.malformed:
        return Verdict("wrong", f"no HTTP: {read.malformed}")
    if read.status is None:
        return Verdict({"left": "left", "late": "late"}.get(read.end, "unreachable"))
    if read.status == 200:
        return _stream(asked, read) if asked.stream else _plain(asked, read)
    if not read.whole:
        return _ended(read)
    if asked.passive and (read.status, read.body) == (503, b""):
        return Verdict("right")  # the backend's own word of its health
    return _refusal(asked, read)


def _ended(read: Reading, code: str = "") -> Verdict:
    word = {"left": "left", "late": "late"}.get(read.end, "cut")
    return Verdict(word, code if word == "cut" else "")


def _plain(asked: Asked, read: Reading) -> Verdict:
    whole, good = asked.body(read.body)
    if read.whole:
        if read.body == whole:
            return Verdict("right")
        return Verdict("wrong", f"complete but not what it has to be: {_show(read.body)}")
    return _ended(read) if good else Verdict("wrong", f"its part is not right: {_show(read.body)}")


def _stream(asked: Asked, read: Reading) -> Verdict:
    kind = read.fields.get("content-type", "")
    # The demo server that is ended while it hangs says so without having begun its stream.
    if not kind.startswith("text/event-stream") and asked.fault != "hang":
        return Verdict("wrong", f"a stream of type {kind!r}")
    said = _without_comments(read.body)
    before, mark, event = said.partition(_ERROR)
    if mark:
        # An event that was cut within has an end put to it, so that the error is one of its own.
        if not (asked.body(before)[1] or asked.body(before.rstrip(b"\n"))[1]):
            return Verdict("wrong", f"its part before an error is not right: {_show(read.body)}")
        return _error(asked, read, mark + event, first=not before)
    whole, good = asked.body(said)
    if not good:
        return Verdict("wrong", f"its part is not right: {_show(said)}")
    if read.whole:
        return Verdict("right") if said == whole else Verdict("wrong", f"ended cleanly in: {_show(said)}")
    return _ended(read, "" if said == whole else "silent")


def _without_comments(body: bytes) -> bytes:
    """What a client of an event stream takes notice of."""
    *whole, part = body.split(b"\n\n")
    kept = [each for each in whole if not each.startswith(b":")]
    return b"".join(each + b"\n\n" for each in kept) + (b"" if part.startswith(b":") else part)


def _error(asked: Asked, read: Reading, said: bytes, *, first: bool) -> Verdict:
    """What an error event is worth, and what comes behind it.

    :param first: nothing has come before it.
    """
    if said == DIED or (DIED.startswith(said) and not read.whole):
        return _ended(read, "engine") if said != DIED else Verdict("cut", "engine")
    event, end, behind = said.partition(b"\n\n")
    if not end and not read.whole:
        return _ended(read, "within its error")
    try:
        error = json.loads(event.removeprefix(b"data: "))["error"]
    except (ValueError, KeyError, TypeError):
        return Verdict("wrong", f"an error event that is none: {_show(said)}")
    if behind:
        return Verdict("wrong", f"something behind an error event: {_show(said)}")
    code = error.get("code") if isinstance(error, dict) else None
    if first and (code == 500 or (asked.fault and str(code) == asked.fault)):
        # The engine's own answer, after the head of a stream had left.
        return Verdict("cut", "engine") if code == 500 else Verdict("right")
    if code not in CODES:
        return Verdict("wrong", f"an error event of code {code!r}: {_show(said)}")
    lacking = _lacking(error)
    if lacking:
        return Verdict("wrong", f"{code} without {lacking}: {_show(said)}")
    if read.whole and not first:
        return Verdict("wrong", f"a clean end after {code} in mid-stream")
    return Verdict("refused" if first else "cut", str(code))


def _lacking(error: dict[str, object]) -> str | None:
    """The field of the contract that an error has not."""
    for name in ("message", "type"):
        if not error.get(name) or not isinstance(error[name], str):
            return name
    return next((name for name in ("param", "backend", "state", "hint") if name not in error), None)


def _refusal(asked: Asked, read: Reading) -> Verdict:
    if asked.method == "HEAD" and read.status in CODES.values():
        return Verdict("refused", f"HEAD {read.status}")
    try:
        told = json.loads(read.body)
        error = told["error"]
        code = error["code"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        return Verdict("wrong", f"status {read.status} with {_show(read.body)}")
    if read.status == 500 and code == 500:
        return Verdict("cut", "engine")  # the engine's own, when it is ended
    if asked.fault and str(read.status) == asked.fault and code == read.status:
        return Verdict("right")
    if CODES.get(str(code)) != read.status:
        return Verdict("wrong", f"status {read.status}, code {code!r}: {_show(read.body)}")
    lacking = _lacking(error)
    if lacking:
        return Verdict("wrong", f"{code} without {lacking}: {_show(read.body)}")
    return Verdict("refused", str(code))


def _show(data: bytes) -> str:
    return repr(data) if len(data) < 400 else f"{data[:150]!r} ... {data[-150:]!r}, {len(data)} bytes"
