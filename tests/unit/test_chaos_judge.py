"""Whoever judges the answers under faults: what is not whole, or not right, is not taken for it."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest

from tests.integration.chaos import aftermath, expected
from tests.integration.chaos.expected import DIED, Asked
from tests.integration.chaos.judge import Verdict, judge
from tests.integration.chaos.traffic import Exchange
from tests.integration.chaos.windows import Windows
from tests.integration.chaos.wire import Reading

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
STREAM = Asked("i", "stream", "a", expected.chat(CHAT, "i"), stream=True)
WHOLE = STREAM.body(b'"created":7,')[0]
EVENTS = {"content-type": "text/event-stream"}
BYTES = Asked("i", "bytes", "a", expected.big(1000), method="GET")
REFUSAL = {"message": "", "type": "", "param": None, "backend": "a", "state": "failed", "hint": ""}


def stream(body: bytes, *, whole: bool = True, end: str = "") -> str:
    """What is said of a stream of these bytes."""
    return judge(STREAM, Reading(200, EVENTS, body, whole, end)).word


def refusal(status: int, code: object, **more: Any) -> str:
    """What is said of such an error."""
    body = json.dumps({"error": {**REFUSAL, "code": code, **more}}).encode()
    return judge(BYTES, Reading(status, {}, body, True)).word


def test_streams() -> None:
    """Right to the last byte, comments aside; ended early it has to show."""
    beat = b': llmproxy {"state": "starting"}\n\n'
    first = WHOLE.index(b"\n\n") + 2
    assert stream(WHOLE) == stream(beat + beat + WHOLE) == "right"
    assert stream(WHOLE[:-1], whole=False, end="eof") == stream(beat[:9], whole=False, end="reset") == "cut"
    assert stream(WHOLE[:first]) == stream(WHOLE.replace(b"hello", b"hallo")) == "wrong"
    assert stream(WHOLE[:first] + WHOLE) == stream(WHOLE + WHOLE) == "wrong"
    assert stream(b"", whole=False, end="late") == "late"
    assert judge(STREAM, Reading(200, {}, WHOLE, True)).word == "wrong"


def test_streams_with_an_error() -> None:
    """In its place the proxy's own error is a refusal; in mid-stream no clean end may follow it."""
    error = b'data: {"error": {"code": "backend_died"}}\n\n'
    first = WHOLE.index(b"\n\n") + 2
    assert stream(error) == "refused"
    assert stream(WHOLE[:first] + error, whole=False, end="eof") == "cut"
    assert stream(WHOLE[: first + 9] + b"\n\n" + error, whole=False, end="eof") == "cut"
    assert stream(WHOLE[:first] + error) == "wrong"
    assert stream(WHOLE[1:first] + error, whole=False, end="eof") == "wrong"
    assert stream(WHOLE[:first] + DIED) == "cut"


def test_plain_answers() -> None:
    """Whole means every byte; a part has to be one."""
    right, wrong = bytes(range(256)) * 4, b"\1" * 1000
    assert judge(BYTES, Reading(200, {}, right[:1000], True)).word == "right"
    assert judge(BYTES, Reading(200, {}, right[:999], True)).word == "wrong"
    assert judge(BYTES, Reading(200, {}, right[:999], False, "eof")).word == "cut"
    assert judge(BYTES, Reading(200, {}, wrong[:10], False, "eof")).word == "wrong"
    assert judge(BYTES, Reading()).word == "unreachable"
    assert judge(BYTES, Reading(malformed="chunk")).word == "wrong"


def test_refusals() -> None:
    """Only those of the contract, with their status and all that belongs to them."""
    assert refusal(503, "backend_start_failed") == "refused"
    assert refusal(500, 500) == "cut"
    assert refusal(500, "backend_start_failed") == refusal(503, "does_not_fit") == "wrong"
    body = b'{"error": {"code": "hold_timeout"}}'
    assert judge(BYTES, Reading(504, {}, body, True)).word == "wrong"


def test_windows() -> None:
    """A fault excuses what it is said to, of its routes, while it is on and a little longer."""
    windows = Windows()
    with windows.open("killed", {"cut"}, ("a",), after=0) as window:
        began = window.began
        assert windows.excuse("cut", "a", began, began + 1) == "killed"
        assert windows.excuse("cut", "b", began, began + 1) is None
        assert windows.excuse("refused", "a", began, began + 1) is None
        assert windows.excuse("cut", "a", began - 2, began - 1) is None
    assert window.ended is not None
    assert windows.excuse("cut", "a", window.ended + 1, window.ended + 2) is None
    assert windows.excuse("cut", "a", window.ended + 1, window.ended + 2, more=5) == "killed"
    assert windows.faults == {"killed": 1}


@pytest.mark.parametrize(
    ("word", "after", "fault", "passive", "right"),
    [
        ("right", 0.1, "", False, True),
        ("right", 0.6, "", False, False),
        ("cut", 0.1, "", False, False),
        ("cut", 0.1, "die-mid-stream", False, True),
        ("cut", 0.1, "stall", False, False),
        ("left", 5.0, "", False, True),
        ("refused", 5.0, "", True, True),
    ],
)
def test_what_was_in_flight_at_a_stop(
    word: str, after: float, fault: str, passive: bool, right: bool
) -> None:
    """A request that goes on is not cut by a stop, but for one that had ended, or that keeps nobody."""
    asked = Asked("i", "stream", "m", expected.fixed(b""), fault=fault, passive=passive)
    stage = mock.Mock(windows=Windows())
    stage.records.exchanges = {"i": Exchange(asked, 9.0, 10.0 + after, Verdict(word))}
    stage.journal.return_value = [{"what": "term", "at": 10.0, "model": "m-model", "open": ["i"]}]
    assert (aftermath.ended_in_flight(stage) == []) is right
