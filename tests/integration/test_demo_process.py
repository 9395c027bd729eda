"""The demo server as a process: bound early, listening late, and ending as vLLM does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

Start = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start demo servers that do not outlive the test."""
    running = []

    def one(
        *arguments: str, port: int | None = None, **environment: str
    ) -> tuple[subprocess.Popen[str], int]:
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        clean = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}
        process = subprocess.Popen(
            [sys.executable, "-m", "llmproxy.demo", "--host", "127.0.0.1", "--port", str(port), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**clean, **environment},
        )
        running.append(process)
        return process, port

    yield one
    for process in running:
        process.kill()
        process.communicate(timeout=10)


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read its log until a line holds the words; pytest's own time limit bounds it."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"the log ended without {words!r}:\n{seen}")


def ask(port: int, path: str, body: object = None) -> bytes:
    """One request."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=10) as response:
        return bytes(response.read())


def test_bound_early_and_listening_late(start: Start, tmp_path: Path) -> None:
    """Before it is ready its port refuses; after, it answers, is taken, and the log has vLLM's lines."""
    starts = tmp_path / "starts"
    process, port = start("--start-delay", "1.5", LLMPROXY_DEMO_STARTS=str(starts))
    wait_for(process, "Starting to load model")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    log = wait_for(process, "Application startup complete.")
    assert "Waiting for application startup." in log
    assert ask(port, "/health") == b""
    other, _ = start("--start-delay", "60", port=port, LLMPROXY_DEMO_STARTS=str(starts))
    assert other.wait(timeout=20) == 1  # long before it would have been ready
    assert len(starts.read_text().splitlines()) == 2


def test_term_when_idle(start: Start) -> None:
    """TERM ends an idle server at once with status 0."""
    process, _ = start()
    wait_for(process, "Application startup complete.")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    assert time.monotonic() - began < 2


def test_term_is_swallowed(start: Start) -> None:
    """With --ignore-term 1 the first TERM is swallowed and the second, while starting, is status 143."""
    process, _ = start("--ignore-term", "1", "--start-delay", "60")
    wait_for(process, "Starting to load model")
    time.sleep(0.5)  # the reactor takes the signals a moment after that line
    process.send_signal(signal.SIGTERM)
    wait_for(process, "TERM number 1 is ignored")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143


def test_journal(start: Start, tmp_path: Path) -> None:
    """Its journal tells of its start, its port, and which requests a TERM found open."""
    journal = tmp_path / "journal"
    process, port = start("--token-delay", "0.2", LLMPROXY_DEMO_JOURNAL=str(journal))
    wait_for(process, "Application startup complete.")
    body = json.dumps({"prompt": "a", "ignore_eos": True, "max_tokens": 1000, "stream": True}).encode()
    fields = {"Content-Type": "application/json", "X-Request-ID": "mine"}
    url = f"http://127.0.0.1:{port}/v1/completions"
    with urlopen(Request(url, body, fields), timeout=10) as stream:
        stream.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["what"] for line in lines] == ["start", "ready", "term", "end"]
    assert (lines[1]["port"], lines[2]["open"], lines[3]["open"]) == (port, ["mine"], [])
    assert len({line["life"] for line in lines}) == 1


@pytest.mark.parametrize("how", ["error", "hang"])
def test_term_in_flight(start: Start, how: str) -> None:
    """TERM breaks a stream off with an error event and [DONE], or leaves it silent until its client goes."""
    process, port = start("--token-delay", "0.2", "--term-in-flight", how)
    wait_for(process, "Application startup complete.")
    body = json.dumps({"prompt": "a", "ignore_eos": True, "max_tokens": 1000, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: demo\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        answer = b""
        while b"data:" not in answer:
            answer += client.recv(65536)
        process.send_signal(signal.SIGTERM)
        if how == "hang":
            wait_for(process, "Waiting for connections to close.")
            assert process.poll() is None
        else:
            while not answer.endswith(b"0\r\n\r\n"):
                answer += client.recv(65536)
            assert b"EngineCore encountered an issue" in answer
            assert b"data: [DONE]" in answer
    assert process.wait(timeout=10) == 0


def test_exit_codes(start: Start) -> None:
    """--exit-after and the fault "exit" end the process with the status that was asked for."""
    process, _ = start("--exit-after", "0.1", "--exit-code", "7", "--start-delay", "60", "--log-line", "CUDA")
    wait_for(process, "CUDA")
    assert process.wait(timeout=10) == 7
    process, port = start()
    wait_for(process, "Application startup complete.")
    with pytest.raises(OSError, match=r".*"):
        ask(port, "/v1/completions", {"prompt": "a", "demo_fault": "exit=9"})
    assert process.wait(timeout=10) == 9
