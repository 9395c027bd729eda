"""What the doctor on another machine asks, in which order, and where it ends: of a small server here."""

from __future__ import annotations

import errno
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmproxy.doctor import doctor_client
from llmproxy.doctor.doctor_client import (
    Answer,
    Target,
    ask,
    complete,
    connect,
    examine,
    judge_completion,
    main,
    read_certificate,
    resolve,
)
from tests.certificates import authority, issue
from tests.serving import serving

KEY = "key-of-the-client"
EVENTS = "text/event-stream"
WORDS = ["one", "two", "three"]


def events(*words: str) -> bytes:
    told = [{"choices": [{"delta": {"content": word}}]} for word in words]
    return b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in told) + b"data: [DONE]\n\n"


class Handler(BaseHTTPRequestHandler):
    """Answers as its server says."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "llmproxy/1.2"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Authorization")
        self.server.asked.append((self.command, self.path, key))
        status, kind, body = self.server.answer(self.path, key)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) + self.server.missing))
        self.end_headers()
        self.wfile.write(body)
        if self.server.missing:
            self.close_connection = True

    do_GET = do_POST = _serve


class Server(ThreadingHTTPServer):
    """A proxy that is well, but for what a test changes.

    :ivar changed: answers that differ, by path.
    :ivar missing: bytes of each answer that never come.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.changed: dict[str, tuple[int, str, bytes]] = {}
        self.missing = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def target(self) -> Target:
        return Target(False, "127.0.0.1", self.server_port, "")

    def answer(self, path: str, key: str | None) -> tuple[int, str, bytes]:
        if path in self.changed:
            return self.changed[path]
        if path == "/v1/models" and key != f"Bearer {KEY}":
            return 401, "application/json", b'{"error": {"code": "invalid_api_key"}}'
        usual: Mapping[str, tuple[str, bytes]] = {
            "/healthz": ("application/json", b'{"status": "ok"}'),
            "/readyz": ("application/json", b'{"status": "ready"}'),
            "/v1/models": ("application/json", b'{"object": "list", "data": [{"id": "chat"}]}'),
            "/v1/chat/completions": (EVENTS, events(*WORDS)),
        }
        return (200, *usual[path])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that shakes no hands is no fault."""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A proxy that is well, and an environment that names no other one on the way."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with serving(Server()) as found:
        yield found


def run(*arguments: str) -> tuple[int, str]:
    told: list[str] = []
    return main(list(arguments), told.append), "".join(told)


def checks(proxy: Server, **how: Any) -> dict[str, str]:
    return {each.check: each.status for each in examine(proxy.target, KEY, **how)}


def test_a_proxy_that_is_well(proxy: Server) -> None:
    """Each check is told as a line, and the status is 0; the key goes only where one is needed."""
    status, told = run(f"http://127.0.0.1:{proxy.server_port}/v1", "--model", "chat")
    assert status == 0, told
    lines = {line.split()[1]: line.split()[0] for line in told.splitlines() if not line.startswith(" ")}
    assert set(lines.values()) <= {"ok", "skipped"}
    assert lines["client.completion"] == "ok"
    assert [(path, key is not None) for _, path, key in proxy.asked] == [
        ("/healthz", False),
        ("/readyz", False),
        ("/v1/models", False),
        ("/v1/models", True),
        ("/v1/chat/completions", True),
    ]


def test_as_json(proxy: Server) -> None:
    """One document; nobody's key is in it, whatever the other side says."""
    repeated = json.dumps({"error": {"message": f"no such key: {KEY}"}}).encode()
    proxy.changed["/v1/models"] = (403, "application/json", repeated)
    status, told = run(f"127.0.0.1:{proxy.server_port}", "--json", "--model", "chat")
    document = json.loads(told)
    assert status == 1
    assert document["ok"] is False
    assert KEY not in told
    last = document["findings"][-1]
    assert (last["check"], last["status"]) == ("client.completion", "skipped")


def test_a_fix_stands_below_its_finding(proxy: Server) -> None:
    """Where there is something to do, it is told."""
    proxy.changed["/healthz"] = (404, "text/html", b"<h1>It works!</h1>")
    status, told = run(f"127.0.0.1:{proxy.server_port}")
    assert status == 1
    assert next(line for line in told.splitlines() if "client.healthz" in line).startswith("fail")
    assert "fix: Correct host and port" in told


@pytest.mark.parametrize("timeout", ["0", "-1", "nan"])
def test_no_time_at_all(proxy: Server, capsys: pytest.CaptureFixture[str], timeout: str) -> None:
    """It is refused before anything is asked."""
    with pytest.raises(SystemExit) as ended:
        run(f"127.0.0.1:{proxy.server_port}", "--timeout", timeout)
    assert (ended.value.code, proxy.asked) == (2, [])
    assert "must be more than 0" in capsys.readouterr().err


def test_without_a_model(proxy: Server) -> None:
    """None is started; it is said how to have one answer."""
    assert checks(proxy)["client.completion"] == "skipped"
    assert all("completions" not in path for _, path, _ in proxy.asked)


def test_what_is_no_llmproxy(proxy: Server) -> None:
    """It ends there, and the key is not sent."""
    proxy.changed["/healthz"] = (404, "text/html", b"<h1>It works!</h1>")
    assert "client.models" not in checks(proxy)
    assert [path for _, path, _ in proxy.asked] == ["/healthz"]


def test_one_that_is_about_to_end(proxy: Server) -> None:
    """It is a proxy all the same, and the rest is looked at."""
    proxy.changed["/healthz"] = (503, "application/json", b"{}")
    assert "client.models" in checks(proxy)


def test_a_name_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is tried."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    (only,) = examine(Target(False, "none.example", 8000, ""))
    assert (only.check, only.status) == ("client.name", "fail")
    assert resolve(Target(False, "none.example", 8000, "")) == ((), "Name or service not known")


def test_a_name_is_told_with_its_addresses(proxy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is seen whether it is the machine that was meant."""
    monkeypatch.setattr(doctor_client, "resolve", lambda target: (("192.0.2.7", "192.0.2.8"), None))
    monkeypatch.setattr(doctor_client, "connect", lambda target, addresses, timeout: ())
    first = next(iter(examine(Target(False, "gpu.example", 8000, ""))))
    assert first.finding == "gpu.example is 192.0.2.7, 192.0.2.8."


def test_a_port_where_nobody_listens() -> None:
    """Each address is tried, and why it does not answer is told; nothing is asked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = Target(False, "127.0.0.1", free.getsockname()[1], "")
    (attempt,) = connect(target, ["127.0.0.1"], 5)
    assert (attempt.address, attempt.error) == ("127.0.0.1", "refused")
    assert [each.check for each in examine(target)] == ["client.name", "client.connect"]
    assert ask(target, "/healthz") == Answer(error="refused")
    assert complete(target, None, "chat", 5).answer.error == "refused"


def test_a_proxy_of_the_environment(proxy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients would go another way; it is told unless that host is left out of it."""
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": "http://proxy.example:3128"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
    assert "client.environment" in checks(proxy)
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: True)
    assert "client.environment" not in checks(proxy)


# -- TLS ------------------------------------------------------------------------------------------------


@contextmanager
def secured(folder: Path) -> Iterator[tuple[Server, Target]]:
    """The same with TLS, by an authority that ``authority.pem`` has."""
    by = authority()
    (folder / "authority.pem").write_bytes(by.pem)
    key, certificate = issue(by=by).write(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield server, Target(True, "localhost", server.server_port, "")


def test_a_certificate_that_nobody_vouches_for(proxy: Server, tmp_path: Path) -> None:
    """It ends there: the key is for nobody else."""
    with secured(tmp_path) as (server, target):
        found = list(examine(target, KEY))
        assert (found[-1].check, found[-1].status) == ("client.tls", "fail")
        assert read_certificate(target, 5).error is not None
    assert server.asked == []


def test_a_certificate_that_is_right(proxy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told until when it is good, and all is asked by TLS."""
    with secured(tmp_path) as (server, target):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        found = {each.check: each.status for each in examine(target, KEY)}
    assert found["client.tls"] == "ok"
    assert found["client.models"] == "ok"
    assert server.asked[0][1] == "/healthz"


def test_tls_where_there_is_none(proxy: Server) -> None:
    """What comes is no TLS, and that is an error like any other."""
    assert read_certificate(proxy.target._replace(tls=True), 5).error


# -- answers that come piece by piece -------------------------------------------------------------------


def test_an_answer_that_is_no_stream(proxy: Server) -> None:
    """Its body is kept for what it says."""
    refusal = b'{"error": {"code": "does_not_fit"}}'
    proxy.changed["/v1/chat/completions"] = (503, "application/json", refusal)
    found = complete(proxy.target, KEY, "chat", 5)
    assert (found.answer.status, found.answer.body) == (503, refusal)
    proxy.changed["/v1/chat/completions"] = (200, "application/json", b"{}")
    assert complete(proxy.target, KEY, "chat", 5).answer.body == b"{}"


def test_a_stream_that_breaks_off(proxy: Server) -> None:
    """It is no whole one, however much has come, and however it ends."""
    proxy.changed["/v1/chat/completions"] = (200, EVENTS, events(*WORDS)[:40])
    whole = checks(proxy, model="chat")
    assert whole["client.completion"] == "fail"
    begun = events("one").partition(b"data: [DONE]")[0]
    proxy.changed["/v1/chat/completions"] = (200, EVENTS, begun)
    for missing in (0, 1000):
        proxy.missing = missing
        found = complete(proxy.target, KEY, "chat", 5)
        assert ([count for _, count in found.reads], found.done) == ([1], False)
        assert judge_completion(found, "chat")[0].status == "fail"


def test_a_stream_that_goes_on_for_ever(proxy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is broken off when its time is over, though something comes all the time."""
    clock = iter([0.0, 1.0, 2.0, 7.0, 8.0])
    times = SimpleNamespace(monotonic=lambda: next(clock), time=lambda: 0.0)
    monkeypatch.setattr(doctor_client, "time", times)
    beats = b": heartbeat\n\n" * 20_000
    proxy.changed["/v1/chat/completions"] = (200, EVENTS, beats)
    found = complete(proxy.target, KEY, "chat", 5)
    assert (found.broken, found.heard, found.done) == ("the connection broke", 7.0, False)


def unverified(why: str) -> ssl.SSLCertVerificationError:
    """As OpenSSL has it."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = why
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "no"), "refused"),
        (TimeoutError(), "timeout"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "unreachable"),
        (OSError(errno.EACCES, "Permission\n denied"), "Permission denied"),
        (ValueError("a\tb"), "a b"),
        (ValueError(), "ValueError"),
        (unverified("self-signed certificate"), "self-signed certificate"),
        (unverified(""), "it cannot be verified"),
    ],
)
def test_errors_in_words(error: BaseException, words: str) -> None:
    """The same ones on every system, in one line."""
    assert doctor_client._words(error) == words
