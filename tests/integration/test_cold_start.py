"""Section 3 of the contract: what happens between the first request and a backend that is ready."""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, Answer, Proxy, at_once, chat, content, demo
from tests.integration.world import until


def stream_body(route: str, **more: Any) -> bytes:
    """A chat completion that streams."""
    return json.dumps(chat(f"{route}-model", stream=True, **more)).encode()


def test_many_at_once(launch: Launch) -> None:
    """200 cold requests at once cause one start, and every one is answered and told its cold start."""
    proxy = launch({"a": demo("--start-delay", "0.5")})
    answers = at_once(200, lambda number: proxy.chat("a", words=f"number {number}"))
    for number, answer in enumerate(answers):
        assert answer.status == 200
        assert f"number {number}\n" in answer.json["choices"][0]["message"]["content"]
        assert answer.header("X-LLMProxy-Backend") == "a"
        assert 0.3 < float(answer.header("X-LLMProxy-Cold-Start") or 0) < 15
    assert len({answer.header("X-Request-ID") for answer in answers}) == 200
    assert proxy.world.starts("a") == 1
    warm = proxy.chat("a")
    assert float(warm.header("X-LLMProxy-Cold-Start") or -1) == 0


SERVER = """
import http.server, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.note()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.note()

    def note(self):
        with open(sys.argv[2], "a") as file:
            file.write(f"{time.time()} {self.path}\\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

time.sleep(0.15)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_hand_over(launch: Launch, tmp_path: Path) -> None:
    """A request reaches the backend within 25 ms (median) of its first healthy answer."""
    script, notes = tmp_path / "server.py", tmp_path / "notes"
    script.write_text(SERVER)
    command = [sys.executable, "-S", str(script), "${port}", str(notes)]
    proxy = launch(
        {"a": {"runtime": "process", "engine": "generic", "command": command, "stop_grace": "1s"}},
    )
    took = []
    for _ in range(7):
        notes.unlink(missing_ok=True)
        assert proxy.ask("POST", "/a/x", b"{}").status == 200
        seen = [line.split() for line in notes.read_text().splitlines()]
        healthy = next(float(at) for at, path in seen if path == "/health")
        asked = next(float(at) for at, path in seen if path == "/x")
        took.append(asked - healthy)
        assert proxy.act("a", "stop").status == 200
    assert statistics.median(took) < 0.025, took


def test_one_hangs_up(launch: Launch) -> None:
    """A waiter that hangs up frees its place at once, and the start goes on for the other."""
    proxy = launch({"a": demo("--start-delay", "1.5")})
    with proxy.wire() as stays, proxy.wire() as leaves:
        for wire in (stays, leaves):
            wire.post("/v1/chat/completions", json.dumps(chat("a-model")).encode())
        proxy.until_waiting("a", 2)
        leaves.socket.close()
        until(lambda: proxy.backend("a")["waiting"] == 1, 1)
        assert proxy.state("a") == "starting"
        assert stays.answer().status == 200
    assert proxy.world.starts("a") == 1


def test_all_hang_up(launch: Launch) -> None:
    """When the last waiter leaves, the start goes on; the backend is reaped after abandon_idle, not idle."""
    proxy = launch({"a": demo("--start-delay", "1", idle="10m", abandon_idle="0.5s")})
    with proxy.wire() as wire:
        wire.post("/v1/chat/completions", json.dumps(chat("a-model")).encode(), "X-Request-ID: left")
        proxy.until_waiting("a", 1)
    proxy.until_waiting("a", 0)
    assert proxy.state("a") == "starting"
    assert proxy.access("left")["outcome"] == "client_gone"
    proxy.until_state("a", "ready")
    proxy.until_state("a", "absent", seconds=8)
    assert not proxy.world.is_running("a")


def assert_failed(answer: Answer, retry_after: int) -> None:
    """It tells of a start that failed with exit status 3 and these log lines."""
    assert answer.status == 503
    error = answer.error
    assert error["code"] == "backend_start_failed"
    assert error["type"] == "server_error"
    assert error["backend"] == "a"
    assert "exit status 3" in error["message"]
    assert "the last words" in error["message"]
    assert retry_after - 2 <= int(answer.header("Retry-After") or 0) <= retry_after
    assert answer.header("X-LLMProxy-Backend") == "a"


def test_start_fails(launch: Launch) -> None:
    """A start that exits refuses its waiters once, with the reason, and then everybody for a while."""
    secret = "the-backends-own-secret-value"
    words = ("--log-line", f"using {secret} and hf_AbCdEfGhIjKlMnOp", "--log-line", "the last words")
    proxy = launch(
        {
            "a": demo(
                *words,
                *("--exit-after", "0.3", "--exit-code", "3", "--start-delay", "60"),
                environment={"HF_TOKEN": secret},
            )
        }
    )
    for answer in at_once(10, lambda _: proxy.chat("a")):
        assert_failed(answer, 5)
        assert secret.encode() not in answer.body
        assert b"hf_AbC" not in answer.body
    assert proxy.world.starts("a") == 1

    began = time.monotonic()
    assert_failed(proxy.chat("a"), 5)
    assert time.monotonic() - began < 2
    assert proxy.world.starts("a") == 1
    view = proxy.backend("a")
    assert view["state"] == "failed"
    assert view["last_failure"]["exit_code"] == 3
    assert view["last_failure"]["oom"] is False
    assert "the last words" in view["last_failure"]["log_tail"]

    assert proxy.act("a", "reset").status == 200
    assert proxy.state("a") == "absent"
    assert_failed(proxy.chat("a"), 5)
    assert proxy.world.starts("a") == 2
    assert secret not in proxy.log()
    assert secret not in json.dumps(proxy.backend("a"))
    assert secret not in proxy.ask("GET", "/api/backends/a/logs", key=ADMIN).body.decode()


def test_cool_down_doubles(launch: Launch) -> None:
    """After the cool-down the next request tries again; when that fails too, the cool-down is doubled."""
    exits = ("--start-delay", "60", "--exit-after", "0.01", "--exit-code", "3")
    proxy = launch({"a": demo(*exits, "--log-line", "the last words")})
    assert_failed(proxy.chat("a"), 5)
    proxy.until_state("a", "absent", seconds=7)
    assert_failed(proxy.chat("a"), 10)
    assert proxy.world.starts("a") == 2


def test_command_that_does_not_exist(launch: Launch) -> None:
    """A backend that cannot be made at all is a failed start, told at once."""
    proxy = launch({"a": {"runtime": "process", "command": ["/no/such/command"], "models": ["a-model"]}})
    answer = proxy.chat("a")
    assert (answer.status, answer.error["code"]) == (503, "backend_start_failed")
    assert "/no/such/command" in answer.error["message"]


@pytest.mark.parametrize("mode", ["hang", "503", "never"])
def test_health_does_not_come(launch: Launch, mode: str) -> None:
    """A health path that hangs, refuses or is not there counts against the start deadline."""
    proxy = launch({"a": demo("--health-mode", mode, start_timeout="1.5s", stop_grace="1s")})
    began = time.monotonic()
    answer = proxy.chat("a")
    assert 1.4 < time.monotonic() - began < 8
    assert (answer.status, answer.error["code"]) == (503, "backend_start_timeout")
    assert int(answer.header("Retry-After") or 0) in (4, 5)
    proxy.until_state("a", "failed")
    assert not proxy.world.is_running("a")


def test_queue_full(launch: Launch) -> None:
    """Past max_waiting a request is refused at once with 429; those who wait are answered."""
    proxy = launch({"a": demo("--start-delay", "1.5", max_waiting=2)})
    with proxy.wire() as first, proxy.wire() as second:
        for wire in (first, second):
            wire.post("/v1/chat/completions", json.dumps(chat("a-model")).encode())
        proxy.until_waiting("a", 2)
        refused = proxy.chat("a")
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert refused.error["type"] == "rate_limit_error"
        assert int(refused.header("Retry-After") or 0) >= 1
        assert first.answer().status == second.answer().status == 200


def test_hold_timeout(launch: Launch) -> None:
    """Past max_wait one waiter is refused with 504, and the start goes on."""
    proxy = launch({"a": demo("--start-delay", "1.5", max_wait="0.4s")})
    answer = proxy.chat("a")
    assert (answer.status, answer.error["code"]) == (504, "hold_timeout")
    assert int(answer.header("Retry-After") or 0) >= 1
    assert float(answer.header("X-LLMProxy-Cold-Start") or 0) >= 0.4
    assert proxy.state("a") == "starting"
    proxy.until_state("a", "ready")
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 1


def plain(stream: bytes) -> bytes:
    """An event stream without its comments."""
    events = [event for event in stream.split(b"\n\n") if event and not event.startswith(b":")]
    return b"".join(event + b"\n\n" for event in events)


def test_heartbeats(launch: Launch) -> None:
    """A held stream gets its head and comments after heartbeat_after; they leave its content as it is."""
    proxy = launch({"a": demo("--start-delay", "1.2", heartbeat_after="0.3s", heartbeat_every="0.2s")})
    with proxy.wire() as stream, proxy.wire() as whole:
        began = time.monotonic()
        stream.post("/a/v1/chat/completions", stream_body("a"), "X-Request-ID: held-stream")
        whole.post("/a/v1/chat/completions", json.dumps(chat("a-model")).encode())
        head = stream.through(b"\r\n\r\n")
        assert 0.25 < time.monotonic() - began < 1
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        for wanted in (
            b"Content-Type: text/event-stream",
            b"X-LLMProxy-Backend: a",
            b"X-Request-ID: held-stream",
        ):
            assert wanted in head
        stream.pending = head + stream.pending
        answer = stream.answer()
        assert whole.answer().status == 200
    comments = [event for event in answer.body.split(b"\n\n") if event.startswith(b":")]
    assert len(comments) >= 3
    told = json.loads(comments[0].removeprefix(b": llmproxy "))
    assert told["state"] == "starting"
    assert answer.header("X-Accel-Buffering") == "no"
    warm = proxy.ask("POST", "/a/v1/chat/completions", stream_body("a"), {"Content-Type": "application/json"})
    assert content(plain(answer.body)) == content(warm.body)
    assert plain(answer.body).endswith(b"data: [DONE]\n\n")
    assert b": llmproxy" not in warm.body


def test_failure_after_heartbeats(launch: Launch) -> None:
    """A start that fails after a stream's head has left is an error event there, and a 503 elsewhere."""
    proxy = launch(
        {
            "a": demo(
                *(
                    "--exit-after",
                    "1",
                    "--exit-code",
                    "3",
                    "--start-delay",
                    "60",
                    "--log-line",
                    "the last words",
                ),
                heartbeat_after="0.2s",
                heartbeat_every="0.2s",
            )
        }
    )
    with proxy.wire() as stream, proxy.wire() as whole:
        stream.post("/a/v1/chat/completions", stream_body("a"), "X-Request-ID: late")
        whole.post("/a/v1/chat/completions", json.dumps(chat("a-model")).encode())
        answer = stream.answer()
        assert answer.status == 200
        event = plain(answer.body)
        assert event.startswith(b'data: {"error"')
        told = json.loads(event.removeprefix(b"data: "))["error"]
        assert told["code"] == "backend_start_failed"
        assert "exit status 3" in told["message"]
        assert_failed(whole.answer(), 5)
    assert proxy.access("late")["outcome"] == "refused"


def beats(stream: bytes) -> list[dict[str, Any]]:
    """What the comments of an event stream tell."""
    lines = [line for line in stream.split(b"\n") if line.startswith(b": llmproxy ")]
    return [json.loads(line.removeprefix(b": llmproxy ")) for line in lines]


def test_a_start_is_explained(launch: Launch) -> None:
    """Its phases come from the engine's log; the second start has a time, which grows in no phase."""
    proxy = launch({"a": demo("--start-delay", "2.5", heartbeat_after="0.1s", heartbeat_every="0.1s")})
    told = []
    for _ in range(2):
        with proxy.wire() as stream:
            stream.post("/a/v1/chat/completions", stream_body("a"))
            told.append(beats(stream.answer().body))
        assert proxy.act("a", "stop").status == 200
    first, second = told
    for seen in told:
        phases = list(dict.fromkeys(beat["phase"] for beat in seen if beat["phase"] != "profiling"))
        assert phases[-3:] == ["loading weights", "compiling", "capturing graphs"], phases
        parts = [beat["progress"] for beat in seen if beat["phase"] == "loading weights"]
        assert parts == sorted(parts)
        assert any(0 < part < 1 for part in parts)
    assert first[0]["eta"] is None
    assert all(1 <= beat["eta"] <= 15 for beat in second[:3])
    assert second[-1]["eta"] <= 1
    for before, after in pairwise(second):
        assert after["eta"] is not None
        assert after["phase"] != before["phase"] or after["eta"] <= before["eta"]
    start = proxy.backend("a")["last_start"]
    assert list(start["phases"])[-4:] == ["loading weights", "compiling", "profiling", "capturing graphs"]
    assert sum(start["phases"].values()) == pytest.approx(start["seconds"])
    metrics = proxy.ask("GET", "/metrics").body.decode()
    assert 'llmproxy_start_seconds_count{backend="a",phase="loading weights"} 2.0' in metrics
    assert proxy.log().count("a: phase (") == 8


def test_messages_are_told_in_their_own_words(launch: Launch) -> None:
    """Anthropic's streams get pings, and a late failure is an error event as Anthropic has it."""
    dies = ("--exit-after", "1", "--exit-code", "3", "--start-delay", "60", "--log-line", "the last words")
    proxy = launch({"a": demo(*dies, heartbeat_after="0.2s", heartbeat_every="0.2s")})
    with proxy.wire() as stream:
        body = chat("a-model", stream=True, max_tokens=8)
        stream.post("/v1/messages", json.dumps(body).encode(), "anthropic-version: 2023-06-01")
        answer = stream.answer()
    assert answer.status == 200
    *pings, last = [event for event in answer.body.split(b"\n\n") if event]
    assert len(pings) >= 3
    for ping in pings:
        comment, event, data = ping.split(b"\n")
        assert comment.startswith(b': llmproxy {"state":"starting","phase":')
        assert (event, data) == (b"event: ping", b'data: {"type": "ping"}')
    event, data = last.split(b"\n")
    told = json.loads(data.removeprefix(b"data: "))
    assert (event, told["type"], told["error"]["type"]) == (b"event: error", "error", "api_error")
    assert "exit status 3" in told["error"]["message"]


def test_headers_on_every_answer(launch: Launch) -> None:
    """X-LLMProxy-Backend, X-LLMProxy-Cold-Start and X-Request-ID are on every answer."""
    proxy = launch({"a": demo()})
    asked: list[tuple[Any, ...]] = [
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/v1/models"),
        ("GET", "/nobody/x"),
        ("GET", "/a"),
        ("GET", "/a/health"),
        ("GET", "/api/backends"),
        ("POST", "/v1/chat/completions", b"{"),
        ("POST", "/v1/chat/completions", chat("a-model")),
        ("POST", "/a/v1/chat/completions", chat("a-model", stream=True)),
        ("GET", "/a/v1/models"),
        ("GET", "/a/nothing/there"),
        ("OPTIONS", "/v1/chat/completions"),
        ("DELETE", "/v1/chat/completions"),
    ]
    for request in asked:
        check_headers(proxy, *request)
    wrong = proxy.ask("GET", "/v1/models", key="wrong")
    assert wrong.status == 401
    assert wrong.header("X-Request-ID")


def check_headers(proxy: Proxy, *request: Any) -> None:
    """The three are there, and the request id is the client's."""
    method, path, *body = request
    answer = proxy.ask(method, path, body[0] if body else None, {"X-Request-ID": "my.id-1"})
    assert answer.header("X-Request-ID") == "my.id-1", request
    assert answer.header("X-LLMProxy-Backend"), request
    assert float(answer.header("X-LLMProxy-Cold-Start") or "x") >= 0, request
