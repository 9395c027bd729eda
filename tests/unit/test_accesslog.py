"""Which requests the access log tells, and when."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from llmproxy.web.accesslog import GATHER, MOST, AccessLog, Entry

ENTRY = Entry("1", "127.0.0.1", "GET", "/coder/v1/models", status=200, at=1700000000.25)


def told(*entries: Entry) -> list[LogEvent]:
    """What is logged of them."""
    clock = Clock()
    log = AccessLog(clock)
    with capturedLogs() as events:
        for entry in entries:
            log.write(entry)
        clock.advance(GATHER)
    return [event for event in events if "entries" in event]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_checks(path: str) -> None:
    """A health check is told only when its answer is not a good one: there is one every few seconds."""
    assert told(evolve(ENTRY, path=path)) == []
    assert len(told(evolve(ENTRY, path=path, status=503, outcome="refused"))) == 1


def test_all_others() -> None:
    """Every other request is told: one event for those of a moment, a line for each, the fields beside."""
    (event,) = told(ENTRY, evolve(ENTRY, request_id="2"))
    first, second = formatEvent(event).split("\n")
    assert first.startswith("access at=2023-11-14T22:13:20.250Z request_id=1 key=- client=127.0.0.1")
    assert " request_id=2 " in second
    assert event["entries"][0] == ENTRY


def test_lines_do_not_wait_for_ever() -> None:
    """They are written after a moment, when there are many, and when the proxy ends."""
    clock = Clock()
    heard: list[int] = []
    log = AccessLog(clock, lambda entries: heard.append(len(entries)))
    log.write(ENTRY)
    clock.advance(GATHER)
    for _ in range(MOST + 1):
        log.write(ENTRY)
    log.flush()
    log.flush()
    assert heard == [1, MOST, 1]
    assert clock.getDelayedCalls() == []


def test_health_checks_are_counted() -> None:
    """Whoever counts requests hears of those, too, that the log leaves out."""
    heard: list[str] = []
    log = AccessLog(Clock(), lambda entries: heard.extend(entry.path for entry in entries))
    log.write(evolve(ENTRY, path="/healthz"))
    log.flush()
    assert heard == ["/healthz"]


@given(st.text())
def test_a_path_cannot_break_the_line(path: str) -> None:
    """Whatever a client asks for, its line has the same words in the same order."""
    (event,) = told(evolve(ENTRY, path="/" + path))
    words = formatEvent(event).split(" ")
    assert [word.partition("=")[0] for word in words[:8]] == [
        "access", "at", "request_id", "key", "client", "method", "path", "route",
    ]  # fmt: skip
    assert "\n" not in formatEvent(event)
