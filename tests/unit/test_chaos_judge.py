"""Whoever judges the answers under faults: what is not whole, or not right, is not taken for it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from attrs import evolve

from tests.integration.chaos import aftermath, expected
from tests.integration.chaos.expected import DIED, Asked
from tests.integration.chaos.judge import Verdict, judge
from tests.integration.chaos.story import Start, Story
from tests.integration.chaos.traffic import Exchange
from tests.integration.chaos.windows import ALL, BACKEND, LAG, TAKEN, Window, Windows
from tests.integration.chaos.wire import Reading

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
STREAM = Asked("i", "stream", "a", expected.chat(CHAT, "i"), stream=True)
WHOLE = STREAM.body(b'"created":7,')[0]
EVENTS = {"content-type": "text/event-stream"}
BYTES = Asked("i", "bytes", "a", expected.big(1000), method="GET")
REFUSAL = {"message": "m", "type": "t", "param": None, "backend": "a", "state": "failed", "hint": ""}


def stream(body: bytes, *, whole: bool = True, end: str = "") -> str:
    """What is said of a stream of these bytes."""
    return judge(STREAM, Reading(200, EVENTS, body, whole, end)).word


def event(code: object, **more: Any) -> bytes:
    """An error event."""
    return b"data: " + json.dumps({"error": {**REFUSAL, "code": code, **more}}).encode() + b"\n\n"


def refusal(status: int, code: object, **more: Any) -> str:
    """What is said of such an error."""
    body = json.dumps({"error": {**REFUSAL, "code": code, **more}}).encode()
    return judge(BYTES, Reading(status, {}, body, True)).word


def test_streams() -> None:
    """Right to the last byte, comments aside; ended early it has to show."""
    beat = b': llmproxy {"state": "starting"}\n\n'
    first = WHOLE.index(b"\n\n") + 2
    assert stream(WHOLE) == stream(beat + beat + WHOLE) == "right"
    for part in (WHOLE[:-1], beat[:9], b""):
        assert judge(STREAM, Reading(200, EVENTS, part, False, "eof")) == Verdict("cut", "silent")
    assert judge(STREAM, Reading(200, EVENTS, WHOLE, False, "eof")) == Verdict("cut")
    assert stream(b"") == stream(beat) == "wrong", "nothing is no answer"
    assert stream(WHOLE[:first]) == stream(WHOLE.replace(b"hello", b"hallo")) == "wrong"
    assert stream(WHOLE[:first] + WHOLE) == stream(WHOLE + WHOLE) == "wrong"
    assert stream(b"", whole=False, end="late") == "late"
    assert judge(STREAM, Reading(200, {}, WHOLE, True)).word == "wrong"


def test_streams_with_an_error() -> None:
    """In its place the proxy's own error is a refusal; in mid-stream no clean end may follow it."""
    error = event("backend_died")
    first = WHOLE.index(b"\n\n") + 2
    assert stream(error) == "refused"
    assert stream(WHOLE[:first] + error, whole=False, end="eof") == "cut"
    assert stream(WHOLE[: first + 9] + b"\n\n" + error, whole=False, end="eof") == "cut"
    assert stream(WHOLE[:first] + error) == "wrong"
    assert stream(WHOLE[1:first] + error, whole=False, end="eof") == "wrong"
    assert stream(WHOLE[:first] + DIED) == "cut"
    assert stream(WHOLE[:first] + DIED[:-3], whole=False, end="eof") == "cut"
    assert stream(WHOLE[:first] + error[:-9], whole=False, end="eof") == "cut"
    assert stream(WHOLE[:first] + error[:-9]) == "wrong"


def test_nothing_comes_behind_an_error() -> None:
    """Neither the rest of the answer nor an end that says that all is well."""
    first = WHOLE.index(b"\n\n") + 2
    error = event("backend_died")
    for behind in (b"data: [DONE]\n\n", WHOLE[first:], error):
        assert stream(error + behind) == "wrong"
        assert stream(WHOLE[:first] + error + behind, whole=False, end="eof") == "wrong"


def test_what_an_error_event_has() -> None:
    """A code of the contract, and all that belongs to it; but for what the engine itself has answered."""
    for other in (event("error"), event("backend_died", message=""), event("backend_died", type=None)):
        assert stream(other) == "wrong"
    assert stream(b'data: {"error": {"code": "backend_died"}}\n\n') == "wrong"
    assert judge(STREAM, Reading(200, EVENTS, event(500), True)) == Verdict("cut", "engine")
    asked = evolve(STREAM, fault="503")
    assert judge(asked, Reading(200, EVENTS, event(503), True)).word == "right"
    assert stream(event(503)) == "wrong"


def test_plain_answers() -> None:
    """Whole means every byte; a part has to be one."""
    right, wrong = bytes(range(256)) * 4, b"\1" * 1000
    assert judge(BYTES, Reading(200, {}, right[:1000], True)).word == "right"
    assert judge(BYTES, Reading(200, {}, right[:999], True)).word == "wrong"
    assert judge(BYTES, Reading(200, {}, right[:999], False, "eof")).word == "cut"
    assert judge(BYTES, Reading(200, {}, wrong[:10], False, "eof")).word == "wrong"
    assert judge(BYTES, Reading()).word == "unreachable"
    assert judge(BYTES, Reading(malformed="chunk")).word == "wrong"
    chat = Asked("i", "plain", "a", expected.chat({**CHAT, "stream": False}, "i"))
    assert judge(chat, Reading(200, {}, b"", True)).word == "wrong"
    assert judge(chat, Reading(200, {}, b'{"id', False, "eof")).word == "cut"


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
    assert windows.excuse("cut", "a", began - 1, window.ended + LAG - 1) == "killed"
    assert windows.excuse("cut", "a", began - 1, window.ended + LAG + 1) is None
    assert windows.faults == {"killed": 1}


def test_what_only_a_sudden_end_of_the_proxy_excuses() -> None:
    """A stream that does not say that it is cut, and a request that it had taken and does not answer."""
    windows = Windows()
    with windows.open("proxy ended", {"cut", "refused", "unreachable"}) as window:
        began = window.began
    assert windows.excuse("silent", "a", began, began + 1) is None
    assert windows.excuse("unreachable", "a", began - TAKEN - 1, began + 1) is None
    assert windows.excuse("unreachable", "a", began, began + 1) == "proxy ended"
    with windows.open("proxy killed", ALL):
        pass
    assert windows.excuse("silent", "a", began, began + 1) == "proxy killed"
    assert windows.excuse("unreachable", "a", began - TAKEN - 1, began + 1) == "proxy killed"


def exchange(word: str, code: str = "", *, fault: str = "", passive: bool = False) -> Exchange:
    """One of route a, from 10 s to 20 s."""
    asked = Asked("i", "stream", "a", expected.fixed(b""), fault=fault, passive=passive)
    return Exchange(asked, 10.0, 20.0, Verdict(word, code))


def test_what_was_asked_for() -> None:
    """A server that was asked to fail excuses what it does, and nothing else."""
    for fault, word, code in (
        ("die-mid-stream", "cut", "backend_died"),
        ("die-before-head", "refused", "backend_unavailable"),
        ("exit=1", "refused", "backend_died"),
        ("error-event", "cut", "engine"),
    ):
        assert aftermath.unexcused(exchange(word, code, fault=fault), Windows()) is None
        assert aftermath.unexcused(exchange(word, code), Windows()) is not None
    for fault, word, code in (
        ("die-mid-stream", "cut", "silent"),
        ("die-mid-stream", "right", ""),
        ("die-mid-stream", "refused", "backend_start_failed"),
        ("503", "cut", "backend_died"),
        ("stall", "late", ""),
        ("stall", "unreachable", ""),
    ):
        assert aftermath.unexcused(exchange(word, code, fault=fault), Windows()) is not None
    assert aftermath.unexcused(exchange("refused", "not_running", passive=True), Windows()) is None


def test_a_start_that_failed_is_told_until_the_next_one(tmp_path: Path) -> None:
    """Whether a fault excuses that depends on when it failed, not on when somebody heard of it."""
    file, now = tmp_path / "log", [0.0]
    story = Story(file, threading.Event(), lambda: now[0])
    file.write_text("2026 [llmproxy.fleet.fleet.Fleet#info] a: absent -> starting (wanted)\n2026 [llm")
    story.look()
    now[0] = 4.0
    with file.open("a") as log:
        log.write("proxy.fleet.fleet.Fleet#info] a: starting -> failed (it ended)\n")
    story.look()
    assert story.failed == [Start("a", 0.0, 4.0)]
    assert story.last_failed("a", 3.0) is story.last_failed("b", 9.0) is None
    late = exchange("refused", "backend_start_failed")
    for began, excused in ((2.0, True), (5.0, False)):
        windows = Windows([Window("killed", began, frozenset("a"), BACKEND, 0.5, began + 0.1)])
        assert (aftermath.unexcused(late, windows, story) is None) is excused
        assert (aftermath.unexcused(exchange("refused", "HEAD 503"), windows, story) is None) is excused
        assert aftermath.unexcused(late, windows) is not None


@pytest.mark.parametrize(
    ("kind", "at", "right"), [("profiling", 12.0, True), ("profiling", 40.0, False), ("no-room", 12.0, False)]
)
def test_what_the_gpu_has_told(kind: str, at: float, right: bool, tmp_path: Path) -> None:
    """Memory that comes free beside a start is right only if somebody had ended what had it."""
    (tmp_path / "gpu").mkdir()
    told = {"time": 1000.0 + at, "kind": kind}
    (tmp_path / "gpu" / "faults").write_text(json.dumps(told) + "\n")
    windows = Windows([Window("killed", 10.0, frozenset({"alpha"}), BACKEND, 3.0, 10.1)])
    stage = mock.Mock(windows=windows, folder=tmp_path)
    assert (aftermath.over_the_budget(stage, 1000.0) == []) is right


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
