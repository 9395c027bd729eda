"""TLS and HTTP/2 as real clients speak them: curl, httpx and nghttp2's own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived

from tests.certificates import Pair, issue
from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, KEY, Proxy, chat, content, demo, free_port, running
from tests.integration.world import until

CURL = shutil.which("curl") or ""
H2LOAD = shutil.which("h2load") or ""


def endpoint(folder: Path, port: int, more: str = "") -> str:
    return f"ssl:{port}:privateKey={folder}/tls.key:certKey={folder}/tls.pem:interface=127.0.0.1" + more


class Secure:
    """A proxy that listens with TLS, too."""

    def __init__(self, proxy: Proxy, folder: Path, *, http2: bool = True) -> None:
        self.proxy = proxy
        self.port = free_port()
        self.folder = folder
        proxy.start("--listen", endpoint(folder, self.port, "" if http2 else ":http2=no"))

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "tls.pem"))

    def curl(self, path: str, *arguments: str, key: str = KEY) -> str:
        command = [CURL, "-sS", "--max-time", "30", "--cacert", f"{self.folder}/tls.pem", *arguments]
        done = subprocess.run(
            [*command, "-H", f"Authorization: Bearer {key}", self.url + path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            http2=True,
            base_url=self.url,
            verify=self.trust,
            timeout=30,
            headers={"Authorization": f"Bearer {KEY}"},
            **options,
        )

    def serial(self) -> int:
        """Of the certificate that a new connection is shown."""
        pem = ssl.get_server_certificate(("localhost", self.port))
        return x509.load_pem_x509_certificate(pem.encode()).serial_number


@pytest.fixture(scope="module")
def pair() -> Pair:
    return issue(names=("localhost",))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Iterator[Secure]:
    """One for the whole module, with a model that is ready and one that is slow to start."""
    folder = tmp_path_factory.mktemp("secure")
    pair.write(folder)
    backends = {
        "a": demo(),
        "cold": demo("--start-delay", "3", heartbeat_after=0.5, heartbeat_every=0.5),
    }
    with running("process", folder, backends, start=False) as proxy:
        found = Secure(proxy, folder)
        assert proxy.chat("a").status == 200
        yield found
        assert "Traceback" not in proxy.log()


def stream(model: str, tokens: int = 20, delay: float = 0.0, **more: Any) -> dict[str, Any]:
    return chat(model, stream=True, ignore_eos=True, max_tokens=tokens, demo_token_delay=delay, **more)


needs_curl = pytest.mark.skipif(not CURL, reason="there is no curl")


@needs_curl
@pytest.mark.parametrize(("flag", "version"), [("--http2", "2"), ("--http1.1", "1.1")])
def test_curl_is_served_in_either_version(secure: Secure, flag: str, version: str) -> None:
    """ALPN decides; what is answered is the same."""
    told = secure.curl("/v1/models", flag, "-w", "\n%{http_version} %{http_code} %{ssl_verify_result}")
    body, _, told = told.rpartition("\n")
    assert told == f"{version} 200 0"
    assert {model["id"] for model in json.loads(body)["data"]} == {"a-model", "cold-model"}


@needs_curl
def test_curl_streams_a_chat(secure: Secure) -> None:
    """Event by event, by HTTP/2, as the first example of the README has it."""
    command = [CURL, "-sSN", "--http2", "--cacert", f"{secure.folder}/tls.pem"]
    command += ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    body = json.dumps(stream("a-model", 30, 0.05))
    with subprocess.Popen(
        [*command, "-d", body, secure.url + "/v1/chat/completions"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        # The rest is still to come.
        assert first.startswith(b"data: ")
        assert process.poll() is None
        rest = process.stdout.read()
    assert process.returncode == 0
    assert rest.endswith(b"data: [DONE]\n\n")
    assert content(first + rest).split()


@needs_curl
def test_a_cold_start_is_told_over_http_2(secure: Secure) -> None:
    """The head comes with the first heartbeat, long before the model is ready."""
    secure.proxy.act("cold", "stop")
    body = json.dumps(stream("cold-model", 5))
    told = secure.curl(
        "/v1/chat/completions", "--http2", "-N", "-i", "-d", body, "-H", "Content-Type: application/json"
    )
    assert told.startswith("HTTP/2 200")
    assert told.count(": llmproxy {") >= 3
    assert told.index(": llmproxy {") < told.index("data: {")
    assert told.rstrip().endswith("data: [DONE]")


def test_httpx_has_a_hundred_streams_on_one_connection(secure: Secure) -> None:
    """All at once, each with its own tokens, and none lost."""

    async def run() -> None:
        limits = httpx.Limits(max_connections=1)
        async with secure.client(limits=limits) as client:

            async def one(number: int) -> None:
                body = stream("a-model", 12, 0.01, words=f"number {number}")
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
                    told = await answer.aread()
                assert told.endswith(b"data: [DONE]\n\n")
                assert f"number {number}" in content(told)

            await asyncio.gather(*(one(number) for number in range(100)))

    asyncio.run(run())


def test_a_stream_that_nobody_reads_stalls_no_other(secure: Secure) -> None:
    """The others come through on the same connection, and memory stays bounded."""

    async def run() -> None:
        async with secure.client(limits=httpx.Limits(max_connections=1)) as client:
            # Not as fast as it can be: httpx gives one stream as large a window as all together, and so one
            # that has filled it keeps the others out by itself.
            slow = client.build_request(
                "POST", "/v1/chat/completions", json=stream("a-model", 200_000, 0.001, words="slow")
            )
            held = await client.send(slow, stream=True)
            before = secure.proxy.resident()
            for number in range(20):
                answer = await client.get("/v1/models")
                assert answer.status_code == 200, number
            other = await client.post("/v1/chat/completions", json=chat("a-model"))
            assert other.status_code == 200
            assert secure.proxy.resident() - before < 30_000_000
            assert secure.proxy.backend("a")["in_flight"] == 1
            await held.aclose()

    asyncio.run(run())
    until(lambda: secure.proxy.backend("a")["in_flight"] == 0)


class Wire:
    """A connection of HTTP/2 that says when it takes no more of a stream; httpx does not."""

    def __init__(self, secure: Secure) -> None:
        context = secure.trust
        context.set_alpn_protocols(["h2"])
        self.socket = context.wrap_socket(
            socket.create_connection(("127.0.0.1", secure.port), 20), server_hostname="localhost"
        )
        assert self.socket.selected_alpn_protocol() == "h2"
        self.machine = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.machine.initiate_connection()
        self.bodies: dict[int, bytes] = {}

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def post(self, path: str, body: bytes) -> int:
        stream = self.machine.get_next_available_stream_id()
        fields = {":method": "POST", ":scheme": "https", ":authority": "localhost", ":path": path}
        fields |= {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        self.machine.send_headers(stream, list(fields.items()))
        self.machine.send_data(stream, body, end_stream=True)
        self.bodies[stream] = b""
        return stream

    def more(self, stream: int, size: int) -> None:
        """Read until so many bytes more of a stream have come."""
        wanted = len(self.bodies[stream]) + size
        while len(self.bodies[stream]) < wanted:
            self.socket.sendall(self.machine.data_to_send())
            data = self.socket.recv(65536)
            assert data, "the connection ended"
            for event in self.machine.receive_data(data):
                if isinstance(event, DataReceived):
                    self.bodies[event.stream_id or 0] += event.data or b""
                    size = event.flow_controlled_length or 0
                    self.machine.acknowledge_received_data(size, event.stream_id or 0)

    def cancel(self, stream: int) -> None:
        self.machine.reset_stream(stream, ErrorCodes.CANCEL)
        self.socket.sendall(self.machine.data_to_send())


def test_the_cancel_of_one_stream_ends_its_own_upstream_request(secure: Secure) -> None:
    """The engine stops generating for it, and goes on for the other one."""
    body = json.dumps(stream("a-model", 10_000, 0.02)).encode()
    with Wire(secure) as wire:
        one, two = (wire.post("/v1/chat/completions", body) for _ in range(2))
        wire.more(one, 300)
        wire.more(two, 300)
        assert secure.proxy.backend("a")["in_flight"] == 2
        wire.cancel(one)
        until(lambda: secure.proxy.backend("a")["in_flight"] == 1)
        wire.more(two, 2000)
        assert secure.proxy.backend("a")["in_flight"] == 1
    until(lambda: secure.proxy.backend("a")["in_flight"] == 0)


def test_a_large_upload_by_http_2(secure: Secure) -> None:
    """Beyond every window: it arrives byte for byte."""
    body = os.urandom(5_000_000)

    async def run() -> httpx.Response:
        async with secure.client() as client:
            return await client.post("/a/echo/upload", content=body)

    answer = asyncio.run(run())
    assert answer.http_version == "HTTP/2"
    assert answer.status_code == 200
    assert hashlib.sha256(body).hexdigest() in answer.text or str(len(body)) in answer.text


@pytest.mark.skipif(not H2LOAD, reason="there is no h2load (nghttp2-client)")
def test_h2load_finds_nothing_wrong(secure: Secure) -> None:
    """Thousands of requests, a hundred at once on each connection: all of them succeed."""
    done = subprocess.run(
        [
            H2LOAD,
            "-n",
            "2000",
            "-c",
            "4",
            "-m",
            "100",
            "-H",
            f"Authorization: Bearer {KEY}",
            secure.url + "/v1/models",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "2000 succeeded, 0 failed, 0 errored" in done.stdout, done.stdout


def test_http_2_can_be_left_out(launch: Launch, pair: Pair, tmp_path: Path) -> None:
    """By the endpoint's own description."""
    pair.write(tmp_path)
    secure = Secure(launch({"a": demo()}, start=False), tmp_path, http2=False)

    async def run() -> httpx.Response:
        async with secure.client() as client:
            return await client.get("/v1/models")

    answer = asyncio.run(run())
    assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")


@pytest.mark.parametrize("by", ["link", "file"])
def test_a_renewed_certificate_is_served_without_a_restart(launch: Launch, tmp_path: Path, by: str) -> None:
    """To new connections after a HUP; a stream that is open goes on, and a bad renewal changes nothing."""
    live = tmp_path / "live"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = issue(names=("localhost",)), issue(names=("localhost",))
    old.write(tmp_path / "old")
    new.write(tmp_path / "new")
    if by == "link":
        live.symlink_to("old")
    else:
        shutil.copytree(tmp_path / "old", live)
    proxy = launch({"a": demo()}, start=False)
    secure = Secure(proxy, live)
    assert secure.serial() == old.certificate.serial_number
    assert proxy.chat("a").status == 200

    async def run() -> None:
        async with secure.client() as client:
            body = stream("a-model", 10_000, 0.02)
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                # A renewal that is wrong, first.
                good = (tmp_path / "new" / "tls.pem").read_bytes()
                (tmp_path / "new" / "tls.pem").write_bytes(b"nonsense")
                if by == "link":
                    (tmp_path / "next").symlink_to("new")
                    (tmp_path / "next").rename(live)
                else:
                    (live / "tls.pem").write_bytes(b"nonsense")
                proxy.hang_up()
                assert secure.serial() == old.certificate.serial_number
                assert "has no certificate in PEM form" in proxy.log()
                if by == "link":
                    (tmp_path / "new" / "tls.pem").write_bytes(good)
                else:
                    (live / "tls.pem").write_bytes(good)
                    shutil.copy(tmp_path / "new" / "tls.key", live / "tls.key")
                proxy.hang_up()
                assert secure.serial() == new.certificate.serial_number
                for _ in range(5):
                    await anext(lines)

    asyncio.run(run())
    told = proxy.ask("GET", "/metrics", key=None).body.decode()
    found = re.search(r'^llmproxy_tls_certificate_expiry_seconds\{port="\d+"\} (\S+)$', told, re.MULTILINE)
    assert found is not None
    assert 89 * 86400 < float(found[1]) < 90 * 86400


def test_what_is_wrong_with_files_ends_the_start(launch: Launch, pair: Pair, tmp_path: Path) -> None:
    """With one line and status 2, and nothing was listened on before."""
    pair.write(tmp_path)
    issue("other").write(tmp_path, "other")
    proxy = launch({"a": demo()}, start=False)
    for key, certificate, told in (
        ("missing", "tls.pem", "cannot read the private key"),
        ("tls.key", "missing", "cannot read the certificate"),
        ("other.key", "tls.pem", "is not of the key"),
    ):
        listen = f"ssl:{free_port()}:privateKey={tmp_path}/{key}:certKey={tmp_path}/{certificate}"
        done = subprocess.run(
            proxy.command("--listen", listen), env=proxy.environ(), capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("llmproxy: listen: 'ssl:")
        assert told in line


def test_the_admin_api_by_http_2(secure: Secure) -> None:
    """Events are followed beside other requests on the same connection."""

    async def run() -> None:
        async with secure.client(limits=httpx.Limits(max_connections=1)) as client:
            admin = {"Authorization": f"Bearer {ADMIN}"}
            async with client.stream("GET", "/api/events", headers=admin) as events:
                assert events.status_code == 200
                answer = await client.get("/api/backends", headers=admin)
                assert {backend["name"] for backend in answer.json()["backends"]} == {"a", "cold"}

    asyncio.run(run())
