"""The operator's command against a server that speaks the admin API's shapes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, strategies

from llmproxy.cli.client import connect, read_env_file
from llmproxy.cli.main import cli
from llmproxy.cli.view import backend_lines, duration, event_line

ROOT = Path(__file__).resolve().parents[2]
KEY = "secret-of-the-test"
FAILURE = {
    "message": "The container exited with status 1.",
    "hint": "Lower --gpu-memory-utilization.",
    "exit_code": 1,
    "oom": False,
    "at": 5.0,
    "log_tail": ["first line", "CUDA out of memory"],
}


def backend(name: str, state: str, **more: Any) -> dict[str, Any]:
    """A backend as the API shows it."""
    return {
        "name": name,
        "route": name,
        "runtime": "docker",
        "engine": "vllm",
        "state": state,
        "since": 10.0,
        "address": "http://172.18.0.3:8001" if state == "ready" else None,
        "via": "network" if state == "ready" else None,
        "in_flight": 0,
        "waiting": 0,
        "models": [f"{name}3b"],
        "container": f"{name}3b",
        "last_start": None,
        "last_failure": None,
        "idle_in": None,
        "retry_in": None,
        **more,
    }


class FakeProxy(ThreadingHTTPServer):
    """An admin API with two backends; ``after`` says what state a verb leads to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict[str, list[str]]]] = []
        self.backends = {
            "coder": backend("coder", "ready", idle_in=90.0),
            "chat": backend("chat", "failed", last_failure=FAILURE, retry_in=20.0),
        }
        self.after = {"start": "ready", "stop": "absent", "restart": "ready", "reset": "absent"}
        self.key: str | None = KEY

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the proxy does."""

    server: FakeProxy

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def _send(self, status: int, value: object, kind: str = "application/json") -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str, message: str, hint: str | None = None) -> None:
        self._send(status, {"error": {"message": message, "code": code, "hint": hint}})

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        fake, path = self.server, parts.path.split("/")[2:]
        fake.asked.append((self.command, parts.path, parse_qs(parts.query)))
        if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
            self._error(401, "invalid_api_key", "A valid API key is required.")
        elif path == ["backends"]:
            self._send(200, {"backends": list(fake.backends.values())})
        elif path == ["events"]:
            event = {"at": 0, "backend": "coder", "from": "absent", "input": "demand", "to": "starting"}
            self._send(200, f": hello\n\ndata: {json.dumps({**event, 'reason': 'a request'})}\n\n")
        elif path[1] not in fake.backends:
            self._error(404, "route_not_found", f"There is no backend {path[1]!r}. Backends: chat, coder.")
        elif path[2:] == ["logs"]:
            self._send(200, "one\ntwo\n", "text/plain")
        elif len(path) == 3:
            found = fake.backends[path[1]]
            found["state"] = fake.after[path[2]]
            self._send(200 if "wait" in parts.query else 202, found)
        else:
            self._send(200, fake.backends[path[1]])

    do_GET = do_POST = _serve


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeProxy]:
    """A running fake proxy, which the environment names."""
    monkeypatch.chdir(tmp_path)
    fake = FakeProxy()
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("LLMPROXY_URL", fake.url)
    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", KEY)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    yield fake
    fake.shutdown()
    thread.join()
    fake.server_close()


def run(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, arguments)


def test_status_shows_every_backend(proxy: FakeProxy) -> None:
    """``status`` has a line for each backend, and the reason and fix of a failure."""
    result = run("status")
    assert result.exit_code == 0
    coder, chat = result.stdout.splitlines()[1:3]
    assert coder.split()[:2] == ["coder", "ready"]
    assert "stops in 1 m 30 s" in coder
    assert "http://172.18.0.3:8001" in coder
    assert "retry in 20 s" in chat
    assert "Lower --gpu-memory-utilization." in result.stdout


def test_status_of_one(proxy: FakeProxy) -> None:
    """``status NAME`` shows all that is known of it, the end of a failed start's log included."""
    result = run("status", "chat")
    assert result.exit_code == 0
    assert "CUDA out of memory" in result.stdout


@pytest.mark.parametrize("arguments", [("status", "--json"), ("--json", "status")])
def test_status_json(proxy: FakeProxy, arguments: tuple[str, ...]) -> None:
    """--json gives the API's own shapes, before or after the command's name."""
    result = run(*arguments)
    assert [b["name"] for b in json.loads(result.stdout)["backends"]] == ["coder", "chat"]


def test_status_with_nothing_configured(proxy: FakeProxy) -> None:
    """With no backends ``status`` says how to get some."""
    proxy.backends.clear()
    assert "No backends are configured" in run("status").stdout


def test_start_waits_and_tells(proxy: FakeProxy) -> None:
    """``start`` waits for readiness, and says when a backend was ready already."""
    proxy.backends["chat"]["state"] = "absent"
    result = run("start", "chat", "coder")
    assert result.exit_code == 0
    assert "chat: ready after" in result.stdout
    assert "coder: was ready already" in result.stdout
    assert ("POST", "/api/backends/chat/start", {"wait": ["1"]}) in proxy.asked


def test_start_without_waiting(proxy: FakeProxy) -> None:
    """``start --no-wait`` comes back at once with the state as it is."""
    proxy.after["start"] = "starting"
    result = run("start", "--no-wait", "chat")
    assert (result.exit_code, result.stdout) == (0, "chat: starting\n")
    assert ("POST", "/api/backends/chat/start", {}) in proxy.asked


def test_start_that_fails(proxy: FakeProxy) -> None:
    """A start that fails is status 1, with the cause, the fix and the end of the log."""
    proxy.after["start"] = "failed"
    result = run("start", "chat")
    assert result.exit_code == 1
    for part in ("exited with status 1", "Lower --gpu-memory-utilization", "CUDA out of memory"):
        assert part in result.stderr
    as_json = run("start", "chat", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["backends"][0]["state"] == "failed"


def test_stop_tells_what_happened(proxy: FakeProxy) -> None:
    """``stop`` says what the backend was and that it has stopped; what did not run is no error."""
    result = run("stop", "coder")
    assert result.exit_code == 0
    assert "coder: was ready, stopped after" in result.stdout
    again = run("stop", "coder", "--force")
    assert (again.exit_code, again.stdout) == (0, "coder: was not running (absent)\n")
    assert ("POST", "/api/backends/coder/stop", {"wait": ["1"], "force": ["1"]}) in proxy.asked


def test_stop_that_does_not_last(proxy: FakeProxy) -> None:
    """A backend that was asked for while it stopped is told as running again: status 1."""
    proxy.after["stop"] = "starting"
    result = run("stop", "coder")
    assert result.exit_code == 1
    assert "is starting again" in result.stderr
    assert run("stop", "coder", "--no-wait").exit_code == 0


def test_restart(proxy: FakeProxy) -> None:
    """``restart`` tells that the backend is ready again."""
    result = run("restart", "coder")
    assert result.exit_code == 0
    assert "coder: ready after" in result.stdout


def test_logs(proxy: FakeProxy) -> None:
    """``logs`` prints the lines; with --json one object to a line."""
    assert run("logs", "coder", "-n", "2").stdout == "one\ntwo\n"
    assert proxy.asked[-1][2] == {"tail": ["2"]}
    lines = run("logs", "coder", "--follow", "--json").stdout.splitlines()
    assert json.loads(lines[1]) == {"backend": "coder", "line": "two"}
    assert proxy.asked[-1][2] == {"tail": ["100"], "follow": ["1"]}


def test_events(proxy: FakeProxy) -> None:
    """``events`` prints each transition with its reason."""
    assert "coder absent -> starting: a request" in run("events").stdout
    assert json.loads(run("events", "--json").stdout)["to"] == "starting"


def test_wrong_key(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is refused or missing is status 1, says where to set it, and is not printed."""
    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", "not-this-one")
    result = run("status")
    assert result.exit_code == 1
    assert "does not know this key" in result.stderr
    assert "LLMPROXY_ADMIN_KEY" in result.stderr
    assert "not-this-one" not in result.output
    monkeypatch.delenv("LLMPROXY_ADMIN_KEY")
    assert "asks for a key, and none is set" in run("status").stderr


def test_key_from_env_file(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without variables the key comes from ./.env."""
    monkeypatch.delenv("LLMPROXY_ADMIN_KEY")
    Path(".env").write_text(f"# a comment\nVLLM_API_KEY={KEY}\n", encoding="utf-8")
    assert run("status").exit_code == 0


def test_not_reachable(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no proxy there, the command says so and how to start it."""
    monkeypatch.setenv("LLMPROXY_URL", "http://127.0.0.1:1")
    result = run("status")
    assert result.exit_code == 1
    assert "llmproxy is not reachable at http://127.0.0.1:1" in result.stderr
    assert "make run" in result.stderr
    assert "not reachable" in json.loads(run("--json", "status").stdout)["error"]["message"]


def test_unknown_backend(proxy: FakeProxy) -> None:
    """A backend that is not there is status 1, with the names of those that are."""
    result = run("stop", "nope")
    assert result.exit_code == 1
    assert "Backends: chat, coder." in result.stderr
    as_json = json.loads(run("stop", "nope", "--json").stdout)
    assert as_json["error"]["code"] == "route_not_found"


def test_something_else_answers(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no llmproxy is told as such, and so is an address that is none."""
    monkeypatch.setattr(Handler, "_serve", lambda self: self._send(404, "<html>"))
    monkeypatch.setattr(Handler, "do_GET", Handler._serve)
    assert "not as llmproxy does" in run("status").stderr
    monkeypatch.setattr(Handler, "do_GET", lambda self: self._send(200, "<html>"))
    assert "does not answer as llmproxy does" in run("status").stderr
    result = run("--url", "localhost:8000", "status")
    assert result.exit_code == 1
    assert "must be an address such as http://127.0.0.1:8000" in result.stderr


def test_wrong_usage() -> None:
    """Wrong usage is status 2."""
    assert run("start").exit_code == 2
    assert run("no-such-command").exit_code == 2
    assert run("logs", "coder", "-n", "many").exit_code == 2


def test_the_key_is_not_shown() -> None:
    """The API object does not show its key."""
    assert "abc" not in repr(connect(None, {"VLLM_API_KEY": "abc"}))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, and an environment without llmproxy's variables or a Docker engine."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("LLMPROXY_", "MAP__", "COMPOSE_")) or name in ("VLLM_API_KEY", "IDLE_SECONDS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    return tmp_path


def test_config_shows_values_and_sources(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``config`` shows each setting in force with its source, says what it could not read, and no secret."""
    (alone / ".env").write_text("VLLM_API_KEY=very-secret\n", encoding="utf-8")
    monkeypatch.setenv("MAP__coder__container", "coder3b")
    monkeypatch.setenv("IDLE_SECONDS", "77")
    result = run("config")
    assert result.exit_code == 0
    (line,) = (row for row in result.stdout.splitlines() if row.startswith("backends.coder.idle"))
    assert line.split() == ["backends.coder.idle", "77", "environment", "IDLE_SECONDS"]
    assert "labels of containers are left out" in result.stderr
    assert "very-secret" not in result.output
    settings = json.loads(run("config", "--json", "--no-docker").stdout)["settings"]
    assert settings["backends.coder.container"]["value"] == "coder3b"


def test_config_file(alone: Path) -> None:
    """``config --config`` reads that file; ./llmproxy.yaml is read without being named."""
    text = "backends: {far: {runtime: url, url: 'http://10.0.0.1:8000'}}\n"
    (alone / "other.yaml").write_text(text, encoding="utf-8")
    result = run("config", "--config", "other.yaml", "--check", "--no-docker")
    assert (result.exit_code, result.stdout) == (0, "The configuration is right. Routes: /far.\n")
    assert "/far" not in run("config", "--check", "--no-docker").stdout
    (alone / "llmproxy.yaml").write_text(text, encoding="utf-8")
    assert "/far" in run("config", "--check", "--no-docker").stdout


def test_config_reads_the_compose_file(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes of services that have no container yet come from the compose file's labels."""
    monkeypatch.setenv("COMPOSE_FILE", str(ROOT / "docker-compose.yml"))
    assert "Routes: /coder, /chat, /qwen7b." in run("config", "--check", "--no-docker").stdout
    monkeypatch.setenv("COMPOSE_FILE", "missing.yml")
    result = run("config", "--check", "--no-docker")
    assert result.exit_code == 2
    assert "missing.yml: it cannot be read: No such file or directory" in result.stderr


def test_config_demo(alone: Path) -> None:
    """``config --demo`` shows the demo models' routes."""
    assert "Routes: /coder, /chat, /qwen7b." in run("config", "--demo", "--check").stdout


def test_config_with_an_error(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is not allowed is one line and status 2."""
    monkeypatch.setenv("IDLE_SECONDS", "soon")
    result = run("config", "--check")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: environment IDLE_SECONDS is 'soon'")
    assert len(result.stderr.splitlines()) == 1
    assert "IDLE_SECONDS" in json.loads(run("config", "--json").stdout)["error"]["message"]
    assert run("config", "--config", "missing.yaml").exit_code == 2


def test_example_is_right(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llmproxy.example.yaml is a configuration."""
    monkeypatch.setenv("VLLM_API_KEY", "k" * 20)
    (alone / "docker-compose.yml").write_text("services: {}\n", encoding="utf-8")
    file = str(ROOT / "llmproxy.example.yaml")
    result = run("config", "--config", file, "--check", "--no-docker")
    assert result.exit_code == 0, result.output
    assert "Routes: /coder, /chat, /local, /far." in result.stdout


@given(strategies.dictionaries(strategies.from_regex(r"[A-Z_]{1,9}", fullmatch=True), strategies.integers()))
def test_env_file_is_read_back(values: dict[str, int]) -> None:
    """Whatever plain values an .env file has are read, quoted or not."""

    class File:
        def read_text(self, encoding: str) -> str:
            quotes = ["", '"', "'"]
            lines = [f"{n}={quotes[v % 3]}{v}{quotes[v % 3]}" for n, v in values.items()]
            return "\n".join(["# comment", *lines])

    path: Any = File()
    assert read_env_file(path) == {name: str(value) for name, value in values.items()}


def test_words() -> None:
    """Durations, events and starts are told in a person's words."""
    assert [duration(s) for s in (-1, 9.96, 59.4, 61, 3700, 90000)] == [
        "0.0 s",
        "10 s",
        "59 s",
        "1 m 1 s",
        "1 h 1 m",
        "1 d 1 h",
    ]
    assert event_line({"at": 0, "backend": "a", "from": "ready", "to": "stopping"}).endswith(
        "a ready -> stopping"
    )
    shown = backend("a", "ready", last_start={"seconds": 12.0, "at": 1.0, "phases": {"loading weights": 3.0}})
    assert "12 s (loading weights 3.0 s)" in "\n".join(backend_lines(shown, 20.0))
