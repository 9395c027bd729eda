"""Secrets are planted wherever they can stand, and all that a real proxy tells is searched for them."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.engine import BASE_IMAGE, require_docker
from tests.integration.proxy import ADMIN, BACKEND_KEY, KEY, Proxy, chat, running
from tests.integration.world import until

LEAKY = """
import http.server, json, os, sys
told = {name: value for name, value in os.environ.items() if name not in ("PATH", "HOME")}
print("starting with", sys.argv[1:], flush=True)
print("environment:", told, flush=True)
for name, value in told.items():
    print(f"INFO {name} is {value}", flush=True)
if "--broken" in sys.argv:
    print("RuntimeError: the hub refused", os.environ["HF_TOKEN"], os.environ["OWN_PASSWORD"], flush=True)
    sys.exit(3)

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/health":
            with open(os.environ["SEEN"], "a") as seen:
                seen.write(str(self.headers) + "\\n")
            print("got", self.path, dict(self.headers), body, flush=True)
        status = 200 if self.path in ("/health", "/v1/models") else 500
        text = json.dumps({"error": {"message": "it fails: " + str(told) + str(self.headers)}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    do_GET = do_POST = answer
    def log_message(self, *_):
        pass

with open(os.environ["STARTS"], "a") as starts:
    print("start", os.getpid(), file=starts)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

SECRETS = {
    "key of a client": KEY,
    "key of the administrator": ADMIN,
    "key of the backends": BACKEND_KEY,
    "HF_TOKEN of the proxy": "hf_" + secrets.token_hex(17),
    "variable of the proxy": secrets.token_urlsafe(24),
    "password of the web proxy": secrets.token_hex(9),
    "variable of a backend": secrets.token_urlsafe(18) + "/+\"'",
    "flag of a backend": secrets.token_hex(16),
    "wrong Bearer": secrets.token_hex(16),
    "wrong x-api-key": secrets.token_hex(16),
    "Basic password": secrets.token_hex(12),
    "cookie": secrets.token_hex(14),
    "query": secrets.token_hex(15),
    "body": secrets.token_hex(15),
    "userinfo of a target": secrets.token_hex(11),
    "override": secrets.token_hex(13),
}


def forms(secret: str) -> set[str]:
    """The secret as it may be written somewhere."""
    found = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], json.dumps(json.dumps(secret))[3:-3]}
    return found | {base64.b64encode(secret.encode()).decode().rstrip("=")}


def leaks(text: str, but: frozenset[str] = frozenset()) -> list[str]:
    """Which of the secrets stand there."""
    return [
        what for what, secret in SECRETS.items() if what not in but and any(f in text for f in forms(secret))
    ]


@pytest.fixture(params=["text", "json"], scope="module")
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with backends that tell all they know; it has been asked for everything that can go wrong."""
    folder = tmp_path_factory.mktemp(f"leaks-{request.param}")
    script = folder / "leaky.py"
    script.write_text(LEAKY, encoding="utf-8")
    own = {"OWN_PASSWORD": SECRETS["variable of a backend"], "SEEN": str(folder / "seen")}
    # By this the world of the tests knows what to end.
    own["STARTS"] = str(folder / "starts-leaky")
    command = [sys.executable, str(script), "--port", "${port}", "--api-key", SECRETS["flag of a backend"]]
    leaky = {"runtime": "process", "command": command, "environment": own, "models": ["leaky"]}
    backends: dict[str, Any] = {
        "leaky": {**leaky, "request_overrides": {"metadata": {"password": SECRETS["override"]}}},
        "broken": {**leaky, "command": [*command, "--broken"], "models": ["broken"]},
        "nowhere": {
            **leaky,
            "command": ["/nonexistent/" + "x", SECRETS["flag of a backend"]],
            "models": ["n"],
        },
        "far": {"runtime": "url", "url": "http://127.0.0.1:9", "models": ["far"], "start_timeout": 1},
    }
    environment = {
        "HF_TOKEN": SECRETS["HF_TOKEN of the proxy"],
        "AWS_SECRET_ACCESS_KEY": SECRETS["variable of the proxy"],
        "HTTPS_PROXY": f"http://me:{SECRETS['password of the web proxy']}@proxy.example:3128",
        "LLMPROXY_LOG_FORMAT": str(request.param),
        "LLMPROXY_LOG_LEVEL": "debug",
    }
    with running("process", folder, backends, environment=environment) as proxy:
        own_env = folder / ".env"
        own_env.write_text(f"VLLM_API_KEY={BACKEND_KEY}\nHF_TOKEN={SECRETS['HF_TOKEN of the proxy']}\n")
        yield proxy


def _stranger(proxy: Proxy, method: str, path: str, fields: dict[str, str], body: str | None = None) -> bytes:
    """Ask from another address: wrong keys lock the one out that they come from."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", proxy.port, timeout=20, source_address=("127.0.0.9", 0)
    )
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **fields})
        response = connection.getresponse()
        return str(response.getheaders()).encode() + response.read()
    finally:
        connection.close()


def _ask_everything(proxy: Proxy) -> list[bytes]:
    """Requests with secrets in all of their parts; what the proxy itself answered."""
    basic = base64.b64encode(f"me:{SECRETS['Basic password']}".encode()).decode()
    everywhere = {
        "Cookie": f"session={SECRETS['cookie']}; llmproxy_session={SECRETS['cookie']}",
        "X-Request-ID": f"id-{KEY}",
        "User-Agent": f"agent/{KEY}",
        "X-Other": SECRETS["wrong Bearer"],
    }
    query = f"?api_key={SECRETS['query']}&token={KEY}"
    told = []
    for path in (f"/leaky/v1/fail{query}", f"/leaky/{KEY}/x{query}", "/leaky/v1/models"):
        answer = proxy.ask("POST", path, {"prompt": SECRETS["body"], "model": "leaky"}, everywhere)
        assert answer.status in (200, 500), answer
    for model in ("broken", "n", "far", SECRETS["wrong Bearer"][:4]):
        body = {**chat(model, SECRETS["body"]), "user": SECRETS["body"]}
        told.append(proxy.ask("POST", f"/v1/chat/completions{query}", body, everywhere).body)
    for fields in (
        {"Authorization": f"Bearer {SECRETS['wrong Bearer']}"},
        {"x-api-key": SECRETS["wrong x-api-key"]},
        {"Authorization": f"Basic {basic}"},
        {"Cookie": everywhere["Cookie"]},
    ):
        paths = (f"/v1/models{query}", "/api/backends", "/ui/", "/leaky/x", "/metrics")
        told += [_stranger(proxy, "GET", path, fields) for path in paths]
    told.append(_stranger(proxy, "POST", "/ui/session", {}, json.dumps({"key": SECRETS["wrong Bearer"]})))
    told.append(proxy.ask("POST", "/v1/chat/completions", b'{"model": "' + SECRETS["body"].encode()).body)
    with proxy.wire() as wire:
        target = f"http://me:{SECRETS['userinfo of a target']}@proxy.test/leaky/x{query}"
        wire.send(
            f"GET {target} HTTP/1.1\r\nHost: proxy.test\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
        )
        told.append(wire.some())
    with proxy.wire() as wire:
        wire.send(f"BAD {SECRETS['query']}\x00 Bearer {KEY}\r\nAuthorization: {KEY}\r\n\r\n".encode())
        told.append(wire.some())
    return told


API = (
    "/api/backends",
    *(
        f"/api/backends/{name}{more}"
        for name in ("leaky", "broken", "nowhere", "far")
        for more in ("", "/why")
    ),
    *(f"/api/backends/{name}/logs?tail=500" for name in ("leaky", "broken")),
    "/api/events?follow=0&tail=500",
    "/api/plan",
    "/api/gpus",
    "/api/advice",
    "/api/leases",
    "/api/prometheus",
    "/api/requests?limit=500",
    "/api/usage?by=key,backend,day",
    "/api/usage?by=key,backend,day&format=csv",
    "/api/keys",
    "/api/openapi.json",
    "/metrics",
    "/readyz",
    "/healthz",
    "/v1/models",
    *(f"/ui/{page}" for page in ("", "usage", "requests", "playground", "backends/broken")),
)

COMMANDS = (
    ("config", "--no-docker"),
    ("config", "--no-docker", "--json"),
    ("status",),
    ("status", "--json"),
    ("logs", "leaky", "--json"),
    ("logs", "broken"),
    ("events", "--json"),
    ("why", "broken", "--json"),
    ("plan", "--json"),
    ("usage", "--json"),
    ("keys", "--json"),
    ("doctor", "--json"),
)


def test_no_secret_gets_out(proxy: Proxy) -> None:
    """Neither the log, the admin API, the metrics, the pages, the command, errors, nor what is kept on disk
    has any of them, and a backend gets the key of no client."""
    found: dict[str, list[str]] = {}

    def search(where: str, text: str) -> None:
        leaking = leaks(text)
        if leaking:
            found[where] = leaking

    for number, told in enumerate(_ask_everything(proxy)):
        search(f"error body {number}", told.decode("latin-1"))
    until(lambda: proxy.state("broken") == "failed")
    for path in API:
        answer = proxy.ask("GET", path, key=ADMIN)
        assert answer.status == 200, (path, answer)
        search(path, answer.body.decode() + str(answer.headers))
    logs = proxy.ask("GET", "/api/backends/leaky/logs?tail=500", key=ADMIN).body
    assert b"environment: {" in logs
    assert b"***" in logs
    failure = proxy.backend("broken")["last_failure"]
    assert "RuntimeError: the hub refused ***" in failure["message"] + failure["log_tail"]
    for words in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "llmproxy", *words],
            cwd=proxy.folder,
            env={
                **proxy.environ(),
                "LLMPROXY_URL": f"http://127.0.0.1:{proxy.port}",
                "LLMPROXY_ADMIN_KEY": ADMIN,
            },
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.stdout, (words, done)
        search(" ".join(words), done.stdout + done.stderr)
    seen = (proxy.folder / "seen").read_text(encoding="utf-8")
    # The backend gets its own key, and whatever else the client says to it.
    assert SECRETS["flag of a backend"] in seen
    assert f"Authorization: Bearer {KEY}" not in seen
    assert ADMIN not in seen
    proxy.stop()
    search("the log", proxy.log())
    state = proxy.folder / "state"
    kept = [file for file in state.rglob("*") if file.is_file() and file.parent.name != "logs"]
    assert {file.name for file in kept} >= {"state.json", "usage.sqlite3"}
    for file in kept:
        search(str(file.relative_to(proxy.folder)), file.read_bytes().decode("latin-1"))
    assert found == {}


def test_a_bad_configuration_is_told_without_its_secrets(proxy: Proxy, tmp_path: Path) -> None:
    """Neither twistd nor the command repeats the values of variables, keys or URLs."""
    hidden = (
        "key of a client",
        "HF_TOKEN of the proxy",
        "variable of the proxy",
        "password of the web proxy",
    )
    for number, text in enumerate(
        (
            "drain: ${AWS_SECRET_ACCESS_KEY}",
            "listen: ['tcp:${HF_TOKEN}']",
            "keys: [{name: a, secret: ${AWS_SECRET_ACCESS_KEY}, admin: maybe}]",
            f"keys: [{{name: a, secret: '{KEY}'}}, {{name: b, secret: '{KEY}'}}]",
            "backends: {a: {runtime: url, url: '${HTTPS_PROXY}'}}",
            "backends: {a: {image: x, environment: ['${HF_TOKEN}']}}",
            "backends: {a: {image: x, idle: '${AWS_SECRET_ACCESS_KEY}'}}",
            "docker: {host: 5, compose_file: '${HF_TOKEN}'}",
            "${HF_TOKEN}: 5",
        )
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, encoding="utf-8")
        twistd = str(Path(sys.executable).parent / "twistd")
        for command in (
            [sys.executable, twistd, "-n", "--pidfile=", "llmproxy", "--config", str(file)],
            [sys.executable, "-m", "llmproxy", "config", "--no-docker", "--check", str(file)],
            [sys.executable, "-m", "llmproxy", "config", "--no-docker", "--json", str(file)],
        ):
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env=proxy.environ(),
                capture_output=True,
                text=True,
                timeout=40,
                check=False,
            )
            assert done.returncode == (0 if "listen" in text and "config" in command else 2), (text, done)
            told = done.stdout + done.stderr
            assert [what for what in leaks(told) if what in hidden] == [], (text, told)


@pytest.mark.docker
def test_no_secret_of_a_container_gets_out(tmp_path: Path) -> None:
    """Of its environment, its command line, its output, and a registry that refuses."""
    require_docker("demo")
    script = 'echo "$OWN_PASSWORD $HF_TOKEN $0"; env; echo "RuntimeError: $HF_TOKEN"; exit 3'
    own = {
        "OWN_PASSWORD": SECRETS["variable of a backend"],
        "HF_TOKEN": SECRETS["HF_TOKEN of the proxy"],
    }
    args = ["sh", "-c", script, "--api-key", SECRETS["flag of a backend"]]
    backends: dict[str, Any] = {
        "broken": {
            "image": BASE_IMAGE,
            "args": args,
            "environment": own,
            "container": f"{tmp_path.name}-broken",
        },
        "none": {
            "image": "127.0.0.1:9/none/none:1",
            "environment": own,
            "container": f"{tmp_path.name}-none",
        },
    }
    with running("docker", tmp_path, {}) as proxy:
        proxy.stop()
        proxy.configure(dict(backends))
        proxy.start()
        try:
            told = [proxy.act(route, "start").body for route in backends]
            told += [proxy.ask("GET", f"/{route}/v1/x").body for route in backends]
            told += [proxy.ask("GET", f"/api/backends/{route}", key=ADMIN).body for route in backends]
            told.append(proxy.ask("GET", "/api/backends/broken/logs?tail=100", key=ADMIN).body)
            assert b"***" in told[-1]
            assert b"cannot be pulled" in told[1] + told[3]
            for text in (*told, proxy.log().encode()):
                assert leaks(text.decode()) == [], text
        finally:
            subprocess.run(
                ["docker", "rm", "-f", f"{tmp_path.name}-broken"], capture_output=True, check=False
            )


def test_what_is_kept_is_for_its_owner_only(proxy: Proxy) -> None:
    """Output of backends, in which anything may stand, and the books."""
    state = proxy.folder / "state"
    for path in (state, *state.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0 or stat.S_IMODE(state.stat().st_mode) == 0o700, (path, oct(mode))
