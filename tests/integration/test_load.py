"""Crowds of a tenth of their size or less; ``make load`` has them in full."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.load.crowd import Asked, may_open, outcome_of
from tests.integration.load.scenarios import SCENARIOS

PARTS = {"streams-1024": 0.5, "held-1024": 0.1, "silent": 0.1, "storm": 0.1}


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may open more, as long as the test goes on."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert may_open(4000)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("name", list(PARTS))
def test_crowd(name: str, tmp_path: Path) -> None:
    """Everybody is served or told why not, and the proxy serves on afterwards."""
    assert SCENARIOS[name](tmp_path / "proxy", PARTS[name]).wrong == []


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TOLD = b'{"error": {"message": "No.", "code": "queue_full"}}'
TOKEN = b'20\r\ndata: {"choices": []}\n\n\r\n'
END = b"\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("stream", "head", "end", "kind", "code"),
    [
        (False, b"", b"", "closed", ""),
        (False, HEAD, b"{}" + END, "complete", ""),
        (False, b"HTTP/1.1 503 No\r\n\r\n", TOLD, "refused", "queue_full"),
        (False, b"HTTP/1.1 503 No\r\n\r\n", b"no JSON", "wordless", ""),
        (False, b"HTTP/1.1 503 No\r\n\r\n", b"{}", "wordless", ""),
        (True, HEAD, TOKEN + b"e\r\ndata: [DONE]\n\n" + END, "complete", ""),
        (True, HEAD, TOKEN + b"5\r\ndata:\r\n9\r\n [DONE]\n\n" + END, "complete", ""),
        (True, HEAD, TOKEN + END, "broken", ""),
        (True, HEAD, b"3\r\n:\n\n\r\n40\r\ndata: " + TOLD + b"\n\n" + END, "refused", "queue_full"),
        (True, HEAD, b'3\r\n:\n\n\r\n40\r\ndata: {"error": 1}\n\n' + END, "wordless", ""),
        (True, HEAD, TOKEN + b"40\r\ndata: " + TOLD + b"\n\ndata: [DONE]\n\n" + END, "broken", ""),
    ],
)
def test_what_an_answer_is_worth(stream: bool, head: bytes, end: bytes, kind: str, code: str) -> None:
    """A stream is complete only where it says so, and whoever is refused is told why."""
    outcome = outcome_of(Asked(1, {"stream": stream}), head, end, True)
    assert (outcome.kind, outcome.code) == (kind, code)


def test_a_part_is_not_whole() -> None:
    """An answer that has no end is broken, whatever it says."""
    assert outcome_of(Asked(1, {}), HEAD, b"data: [DONE]\n\n", False).kind == "broken"
