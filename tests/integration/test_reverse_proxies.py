"""nginx, Caddy and HAProxy in front, set up as docs/reverse-proxies.md has it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import Pair, issue
from tests.integration.conftest import Launch
from tests.integration.proxy import KEY, Proxy, Wire, chat, demo, free_port
from tests.integration.world import ROOT, until

DOCS = ROOT / "docs" / "reverse-proxies.md"
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
CADDY = shutil.which("caddy")
HAPROXY = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")


def block(kind: str, *words: str) -> str:
    """The configuration in the documentation that has these words in it."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [each for each in blocks if all(word in each for word in words)]
    return str(found)


@contextmanager
def served(command: Sequence[str], port: int, folder: Path) -> Iterator[None]:
    """A server of somebody else's while a test lasts."""
    with open(folder / "front.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, "HOME": str(folder)}
        )

    def listens() -> bool:
        assert process.poll() is None, (folder / "front.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens, 15)
        yield
    finally:
        process.terminate()
        process.wait(20)


class SecureWire(Wire):
    """A connection by TLS."""

    def __init__(self, port: int, pair: Pair, name: str) -> None:
        super().__init__(port)
        context = ssl.create_default_context(cadata=pair.pem.decode())
        self.socket = context.wrap_socket(self.socket, server_hostname=name)


@pytest.fixture
def pair() -> Pair:
    return issue("llm.example.com", names=("llm.example.com",))


@pytest.fixture
def proxy(launch: Launch) -> Proxy:
    """llmproxy, which trusts who is in front of it, and knows its name."""
    found = launch({"a": demo()}, trusted_proxies=["127.0.0.1"], allowed_hosts=["llm.example.com"])
    assert found.chat("a").status == 200
    return found


def passes(connect: Callable[[], Wire], proxy: Proxy) -> None:
    """A stream comes event by event, and everybody knows whose request it is."""
    body = json.dumps(
        chat("a-model", stream=True, ignore_eos=True, max_tokens=20, demo_token_delay=0.1)
    ).encode()
    with connect() as wire:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: llm.example.com\r\nContent-Length: {len(body)}\r\n"
        )
        head += f"Content-Type: application/json\r\nAuthorization: Bearer {KEY}\r\n\r\n"
        begun = time.monotonic()
        wire.send(head.encode() + body)
        wire.through(b"\r\n\r\n")
        wire.through(b'"content":"')
        # Two seconds of tokens are still to come.
        assert time.monotonic() - begun < 1.0
        wire.through(b"[DONE]")
        assert time.monotonic() - begun > 1.5
    spoofed = (
        "GET /a/echo HTTP/1.1\r\nHost: llm.example.com\r\n"
        "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n"
        f"X-Forwarded-Host: evil.example\r\nX-Request-ID: spoof\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    )
    with connect() as wire:
        wire.send(spoofed.encode())
        fields = {name.lower(): value for name, value in wire.answer().json["headers"]}
    assert fields["x-forwarded-for"] == "127.0.0.1"
    assert fields["x-forwarded-host"] == "llm.example.com"
    assert "forwarded" not in fields
    assert proxy.access("spoof")["client"] == "127.0.0.1"
    with connect() as wire:
        wire.send(b"GET /ui/ HTTP/1.1\r\nHost: llm.example.com\r\n\r\n")
        # The name is known, so that one is asked to sign in.
        assert wire.answer().status == 401


@pytest.mark.skipif(NGINX is None, reason="there is no nginx")
def test_nginx(proxy: Proxy, pair: Pair, tmp_path: Path) -> None:
    """As the documentation has it, TLS, names and all."""
    assert NGINX is not None
    pair.write(tmp_path)
    port = free_port()
    settings = block("nginx", "server_name")
    for written, here in (
        ("127.0.0.1:8000", f"127.0.0.1:{proxy.port}"),
        ("listen 443 ssl http2", f"listen 127.0.0.1:{port} ssl http2"),
        ("/etc/letsencrypt/live/llm.example.com/fullchain.pem", f"{tmp_path}/tls.pem"),
        ("/etc/letsencrypt/live/llm.example.com/privkey.pem", f"{tmp_path}/tls.key"),
    ):
        assert written in settings, written
        settings = settings.replace(written, here)
    paths = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\nerror_log stderr warn;\npid {tmp_path}/pid;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}{settings}}}\n"
    )
    with served([NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], port, tmp_path):
        passes(lambda: SecureWire(port, pair, "llm.example.com"), proxy)
        with SecureWire(port, pair, "llm.example.com") as wire:
            _websocket(wire)


def _websocket(wire: Wire) -> None:
    wire.send(
        b"GET /a/ws HTTP/1.1\r\nHost: llm.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    )
    assert wire.answer().status == 101
    wire.send(b"hello")
    assert wire.exactly(5) == b"hello"


@pytest.mark.skipif(CADDY is None, reason="there is no Caddy")
def test_caddy(proxy: Proxy, pair: Pair, tmp_path: Path) -> None:
    """As the documentation has it, but for the certificate, which it gets by itself elsewhere."""
    assert CADDY is not None
    key, certificate = pair.write(tmp_path)
    port = free_port()
    settings = block("caddy").replace("127.0.0.1:8000", f"127.0.0.1:{proxy.port}")
    site = f"llm.example.com:{port} {{\n    bind 127.0.0.1\n    tls {certificate} {key}\n"
    assert settings.startswith("llm.example.com {\n")
    settings = settings.replace("llm.example.com {\n", site)
    (tmp_path / "Caddyfile").write_text("{\n    admin off\n    auto_https disable_redirects\n}\n" + settings)
    command = [CADDY, "run", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
    with served(command, port, tmp_path):
        passes(lambda: SecureWire(port, pair, "llm.example.com"), proxy)


@pytest.mark.skipif(HAPROXY is None, reason="there is no HAProxy")
def test_the_proxy_protocol(launch: Launch, pair: Pair, tmp_path: Path) -> None:
    """HAProxy passes TLS through, and says whose connection it is."""
    assert HAPROXY is not None
    pair.write(tmp_path)
    proxy = launch({"a": demo()}, start=False, allowed_hosts=["llm.example.com"])
    inner, port = free_port(), free_port()
    proxy.start(
        "--listen",
        f"haproxy:ssl:{inner}:privateKey={tmp_path}/tls.key:certKey={tmp_path}/tls.pem:interface=127.0.0.1",
    )
    assert proxy.chat("a").status == 200
    settings = block("haproxy").replace("bind :443", f"bind 127.0.0.1:{port}")
    settings = settings.replace("10.0.0.5:8443", f"127.0.0.1:{inner}")
    (tmp_path / "haproxy.cfg").write_text(settings)
    with served([HAPROXY, "-db", "-f", str(tmp_path / "haproxy.cfg")], port, tmp_path):
        passes(lambda: SecureWire(port, pair, "llm.example.com"), proxy)
    # Whoever says nothing of the kind is let go.
    with Wire(inner) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        assert wire.rest() == b""


def test_the_proxy_protocol_without_tls(launch: Launch) -> None:
    """The address that the line names is the client's, for the log and for the model."""
    proxy = launch({"a": demo()}, start=False)
    port = free_port()
    proxy.start("--listen", f"haproxy:tcp:{port}:interface=127.0.0.1")
    assert proxy.chat("a").status == 200
    ask = f"GET /a/echo HTTP/1.1\r\nHost: h\r\nX-Request-ID: told\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    with Wire(port) as wire:
        wire.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 5123 443\r\n" + ask.encode())
        fields = {name.lower(): value for name, value in wire.answer().json["headers"]}
        assert fields["x-forwarded-for"] == "192.0.2.7"
        # And again, on the same connection.
        wire.send(ask.replace("told", "again").encode())
        assert wire.answer().status == 200
    assert proxy.access("told")["client"] == proxy.access("again")["client"] == "192.0.2.7"
