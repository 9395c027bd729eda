"""Which requests the access log tells."""

from __future__ import annotations

import pytest
from attrs import evolve
from twisted.logger import LogEvent, capturedLogs

from llmproxy.web.accesslog import AccessLog, Entry

ENTRY = Entry("1", "127.0.0.1", "GET", "/coder/v1/models", status=200)


def told(entry: Entry) -> list[LogEvent]:
    """What is logged of it."""
    with capturedLogs() as events:
        AccessLog().write(entry)
    return [event for event in events if "request_id" in event]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_checks(path: str) -> None:
    """A health check is told only when its answer is not a good one: there is one every few seconds."""
    assert told(evolve(ENTRY, path=path)) == []
    assert len(told(evolve(ENTRY, path=path, status=503, outcome="refused"))) == 1


def test_all_others() -> None:
    """Every other request is told, with its fields beside the line."""
    (event,) = told(ENTRY)
    assert (event["path"], event["status"]) == ("/coder/v1/models", 200)
