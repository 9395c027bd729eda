"""The operator's command, and a server for it to talk to that speaks the admin API's shapes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from llmproxy.cli.main import cli
from tests.serving import serving

__all__ = ["FAILURE", "GIB", "KEY", "FakeProxy", "Handler", "backend", "run", "served"]

KEY = "secret-of-the-test"
GIB = 2**30
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


DOCUMENTS: dict[str, dict[str, Any]] = {
    "plan": {
        "backend": None,
        "ready_in": None,
        "plan": {},
        "told": ["coder stops: it makes room for chat.", "chat waits: until coder has left."],
    },
    "hosts": {"hosts": []},
    "gpus": {
        "gpus": [
            {
                "gpu": "0",
                "unit": "bytes",
                "total": 24 * GIB,
                "reserve": 0,
                "lent": 2 * GIB,
                "claimed": 14 * GIB,
                "unclaimed": 8 * GIB,
                "claims": [{"name": "coder", "state": "ready", "memory": 14 * GIB}],
                "leases": ["lease-1"],
                "measured": {"total": 24 * GIB, "free": 9 * GIB},
            }
        ],
        "not_measured": None,
    },
    "advice": {"days": 0.1, "advice": [], "told": "The record spans 2 h 24 m."},
}


EVENT = {"at": 0, "backend": "coder", "from": "absent", "input": "demand", "to": "starting"}
EVENTS: tuple[dict[str, Any], ...] = (
    {**EVENT, "reason": "a request"},
    {**EVENT, "to": "absent", "decision": "evict", "for": "chat", "reason": "makes room"},
)


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
        self.after = {
            "start": "ready",
            "stop": "absent",
            "sleep": "sleeping",
            "wake": "ready",
            "restart": "ready",
            "reset": "absent",
        }
        self.leases: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.held = True
        self.documents = dict(DOCUMENTS)
        self.csv = ""
        self.output = "one\ntwo\n"
        self.events = [dict(event) for event in EVENTS]
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
            told = "".join(f"data: {json.dumps(one)}\n\n" for one in fake.events)
            self._send(200, f": hello\n\n{told}")
        elif path == ["usage"] and "format=csv" in parts.query:
            self._send(200, fake.csv, "text/csv")
        elif path[0] == "leases":
            self._leases(path[1:])
        elif path[0] in fake.documents:
            self._send(200, fake.documents[path[0]])
        elif len(path) == 1:
            self._error(404, "route_not_found", "There is no such path under /api.")
        elif path[1] not in fake.backends:
            self._error(404, "route_not_found", f"There is no backend {path[1]!r}. Backends: chat, coder.")
        elif path[2:] == ["why"]:
            why = ["coder is ready, for 5.0 s.", "It needs 0.60 of GPU 0 (as it says)."]
            self._send(200, {"backend": fake.backends[path[1]], "why": why})
        elif path[2:] == ["logs"]:
            self._send(200, fake.output, "text/plain")
        elif len(path) == 3:
            found = fake.backends[path[1]]
            found["state"] = fake.after[path[2]]
            found["level"] = 1 if found["state"] == "sleeping" else None
            self._send(200 if "wait" in parts.query else 202, found)
        else:
            self._send(200, fake.backends[path[1]])

    def _leases(self, path: list[str]) -> None:
        fake, leases = self.server, self.server.leases
        if self.command == "POST":
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.bodies.append(asked)
            if asked["memory"] == "14":
                self._error(400, "invalid_request", "memory is '14'; use a fraction.")
                return
            if asked["memory"] == "99GiB":
                self._error(503, "does_not_fit", "'lease-1' does not fit.", "Unpin something.")
                return
            name = f"lease-{len(leases) + 1}"
            leases[name] = {
                "id": name,
                "gpu": asked["gpu"],
                "memory": 16 * GIB,
                "note": asked["note"],
                "held": fake.held,
                "since": 0.0,
                "until": time.time() + 2400,
                "waits": None if fake.held else {"why": "until coder has left", "on": ["coder"]},
                "remark": "All of it is lent." if asked["note"] == "big" else None,
            }
            self._send(201, leases[name])
        elif not path:
            self._send(200, {"leases": list(leases.values())})
        elif path[0] not in leases:
            self._error(404, "route_not_found", f"There is no lease {path[0]!r}. Leases: none.")
        elif self.command == "DELETE":
            self._send(200, leases.pop(path[0]))
        else:
            self._send(200, {**leases[path[0]], "held": True, "waits": None})

    do_GET = do_POST = do_DELETE = _serve


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProxy]:
    """A running fake proxy, which the environment names."""
    with serving(FakeProxy()) as fake:
        monkeypatch.setenv("LLMPROXY_URL", fake.url)
        monkeypatch.setenv("LLMPROXY_ADMIN_KEY", KEY)
        monkeypatch.delenv("VLLM_API_KEY", raising=False)
        yield fake


def run(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, arguments)
