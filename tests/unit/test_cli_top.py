"""The full screen: what it looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmproxy.cli.client import connect
from llmproxy.cli.top.looking import Seen, look
from llmproxy.cli.top.picture import gpu_lines, request_lines, summary
from tests.unit.fake_proxy import GIB, FakeProxy, backend, run, served

OPEN = {
    "request_id": "1",
    "age": 2.5,
    "method": "POST",
    "path": "/v1/chat/completions",
    "backend": "coder",
    "key": "me",
    "client": "127.0.0.1",
    "state": "waiting",
    "held": 2.5,
    "first_byte": None,
    "tokens": None,
}
REQUESTS: dict[str, Any] = {
    "open": [OPEN, {**OPEN, "state": "in_flight", "tokens": 42, "first_byte": 0.25}],
    "finished": [
        {
            **OPEN,
            "status": 503,
            "outcome": "refused",
            "seconds": 0.5,
            "completion_tokens": None,
            "tokens_per_second": None,
            "backend": None,
        },
        {
            **OPEN,
            "status": 200,
            "outcome": "ok",
            "seconds": 9.0,
            "completion_tokens": 99,
            "tokens_per_second": 12.34,
        },
    ],
    "next": None,
}
GPU = {
    "gpu": "0",
    "unit": "bytes",
    "total": 24 * GIB,
    "reserve": 1 * GIB,
    "lent": 2 * GIB,
    "claimed": 14 * GIB,
    "claims": [{"name": "coder", "memory": 14 * GIB}],
    "measured": {"free": 9 * GIB},
}


def seen(**more: Any) -> Seen:
    """The proxy at one moment."""
    backends = [backend("coder", "ready", in_flight=2, tokens_per_second=130.6), backend("chat", "absent")]
    return Seen(
        **{"at": 20.0, "backends": backends, "gpus": [GPU], "leases": [], "requests": REQUESTS, **more}
    )


def text(lines: Any) -> list[str]:
    return [line.plain for line in lines]


def test_the_first_line() -> None:
    """How much of everything; what this proxy does not tell is left out."""
    assert summary(seen(), "http://h:1", "12:00:00", 100).plain == (
        "llmproxy http://h:1  12:00:00  1 of 2 ready  2 in flight  0 waiting  131 tokens/s"
    )
    old = summary(seen(backends=[backend("a", "absent")]), "http://h:1", "12:00:00", 100).plain
    assert "tokens" not in old
    assert summary(seen(), "http://h:1", "12:00:00", 70).plain.startswith("llmproxy  12:00:00  1 of 2 ready")
    assert summary(seen(), "http://h:1", "12:00:00", 62).plain.startswith("llmproxy  1 of 2 ready")
    assert len(summary(seen(), "http://h:1", "12:00:00", 20).plain) == 20


def test_gpus() -> None:
    """How much is claimed and lent of what is there, and by whom."""
    lease = {"id": "lease-1", "memory": 2 * GIB, "gpu": "0", "note": "a game", "held": True, "until": 80.0}
    waits = {**lease, "held": False, "note": ""}
    line, held, waiting = gpu_lines(seen(leases=[lease, waits]), 100)
    assert line.plain.startswith("GPU 0 " + "\u2501" * 24 + " 16.0 GiB of 23.0 GiB")
    assert line.plain.endswith("coder 14.0 GiB, measured free 9.0 GiB")
    assert [span.style for span in line.spans[1:4]] == ["green", "cyan", "bright_black"]
    assert held.plain == "lease-1: 2.0 GiB of GPU 0 (a game), 1 m 0 s left"
    assert waiting.plain.endswith("GPU 0, waits for its memory")
    nothing = {**GPU, "total": 0, "reserve": 0, "lent": 0, "claimed": 0, "claims": [], "measured": None}
    assert gpu_lines(seen(gpus=[nothing]), 100)[0].plain.endswith("0.0 GiB of 0.0 GiB")


def test_requests() -> None:
    """Those that are open first; what they wait for, and what became of the others."""
    heading, waits, flies, refused, done = text(request_lines(seen(), 140))
    assert heading.split()[:4] == ["REQUEST", "BACKEND", "PATH", "KEY"]
    assert waits.split()[:4] == ["waiting", "coder", "/v1/chat/completions", "me"]
    assert flies.startswith("in flight")
    assert flies.split()[-1] == "42"
    assert refused.split()[:3] == ["503", "refused", "-"]
    assert done.split()[-2:] == ["99", "12.3"]
    assert max(map(len, text(request_lines(seen(), 80)))) <= 80
    assert text(request_lines(seen(requests=None), 80)) == ["This proxy does not tell of requests."]
    assert text(request_lines(seen(requests={"open": [], "finished": []}), 80)) == ["No requests yet."]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeProxy]:
    """A running fake proxy, which the environment names."""
    monkeypatch.chdir(tmp_path)
    with served(monkeypatch) as fake:
        yield fake


def test_an_older_proxy(proxy: FakeProxy) -> None:
    """One that has no list of requests shows the rest; as JSON, too."""
    assert look(connect(None)).requests is None
    found = json.loads(run("top", "--json").stdout)
    assert (found["requests"], [one["name"] for one in found["backends"]]) == (None, ["coder", "chat"])
    proxy.documents["requests"] = REQUESTS
    assert json.loads(run("top", "--json").stdout)["requests"] == REQUESTS


def test_top_needs_a_terminal(proxy: FakeProxy) -> None:
    """On a pipe it is wrong usage; a proxy that is away, or a wrong key, is told before anything is drawn."""
    result = run("top")
    assert result.exit_code == 2
    assert "top needs a terminal" in result.stderr
    proxy.key = "another"
    assert run("top").exit_code == 1
